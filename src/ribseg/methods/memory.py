"""The device to compute on, and one that runs out of memory, said with what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ribseg.errors import ConfigError, DeviceMemoryError, reason


def usable_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; None for a GPU if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=chosen).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA asserts
        raise ConfigError(f"the device {str(chosen)!r} cannot be used here: {reason(error)}") from error


@contextmanager
def memory_errors(device: torch.device, work: str, advice: str) -> Iterator[None]:
    """Inside, torch's error about too little memory becomes a DeviceMemoryError.

    Args:
        device: whose memory it is.
        work: what it does not suffice for.
        advice: whole sentences.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(f"the memory of {device} does not suffice for {work}. {advice}") from error
