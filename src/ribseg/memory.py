"""Choice of the device, and errors when its memory is exhausted."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ribseg.errors import ConfigError, DeviceMemoryError, reason


def usable_device(name: str | torch.device | None = None) -> torch.device:
    """The device with this name; None for a GPU if there is one, else the CPU.

    Raises:
        ConfigError: the device is not available.
    """
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=chosen).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA asserts
        raise ConfigError(f"the device {str(chosen)!r} cannot be used here: {reason(error)}") from error


@contextmanager
def memory_errors(device: torch.device, work: str, advice: str) -> Iterator[None]:
    """Turns torch's out-of-memory errors inside into a DeviceMemoryError.

    Args:
        device: that ran out of memory.
        work: that needed it, for the message.
        advice: complete sentences for the message.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(f"{device} is out of memory for {work}. {advice}") from error
