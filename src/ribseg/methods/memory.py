"""A device that runs out of memory, said with what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ribseg.errors import DeviceMemoryError


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
