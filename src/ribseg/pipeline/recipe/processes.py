"""The processes of a run: which is the first, how they wait for one another, part, and are ended."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only

from ribseg.errors import RibsegError

T = TypeVar("T")
STATE = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")

_waiting: dict[Any, Any] = {}  # process group -> one of the same processes, for waiting


def is_first_process() -> bool:
    """Whether this process has rank 0."""
    return cast(int, getattr(rank_zero_only, "rank", 0)) == 0


def value_of_first(value: T) -> T:
    """The value of the first process, in all processes of the process group."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def waiting_group(minutes: float) -> Any:
    """The group in which the processes wait for one another; created by the first call, in all of them.

    Args:
        minutes: that they wait.
    """
    if dist.group.WORLD not in _waiting:
        _waiting.clear()
        _waiting[dist.group.WORLD] = dist.new_group(backend="gloo", timeout=timedelta(minutes=minutes))
    return _waiting[dist.group.WORLD]


class WaitingGroup(Callback):
    """Creates `waiting_group` as soon as a Trainer has made the process group: later one may have died.

    Args:
        minutes: that the processes wait.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Creates it."""
        if dist.is_initialized():
            waiting_group(self.minutes)


def wait_for_all(stage: str, minutes: float) -> None:
    """Returns when all processes of the process group are here.

    A group of its own waits, by gloo: a barrier of NCCL gives up after 10 minutes and names nobody, and the
    first process may well make masks for hours while the others wait.

    Args:
        stage: that they wait in, for the message.
        minutes: to wait for a process that is late; one that has died is noticed at once.

    Raises:
        RibsegError: names the processes that have not come.
    """
    limit = timedelta(minutes=minutes)
    try:
        dist.monitored_barrier(waiting_group(minutes), timeout=limit, wait_all_ranks=True)
    except RuntimeError as error:
        raise RibsegError(_missing(stage, minutes, str(error))) from error


def _missing(stage: str, minutes: float, error: str) -> str:
    late = re.search(r"Ranks ([0-9, ]+) failed", error)  # the first process knows them
    who = late[1].strip(" ,") if late else ", ".join(map(str, _ended(minutes)))
    here = f"process {dist.get_rank()} of {dist.get_world_size()} (counted from 0)"
    return (
        f"stage {stage}: {here} waited for process {who or 'unknown'}, which has ended or is over "
        f"process_timeout={minutes:g} minutes late; its own messages say why. Give the same command again to "
        "resume"
    )


def _ended(minutes: float) -> list[int]:
    """The processes whose connections are closed: sending to them fails at once."""
    ended = []
    for rank in set(range(dist.get_world_size())) - {dist.get_rank()}:
        try:
            dist.isend(torch.zeros(1), rank, group=waiting_group(minutes))
        except RuntimeError:
            ended.append(rank)
    return ended


class separate_processes:  # noqa: N801 - reads as a statement
    """Destroys the process group of a run and restores the environment, so that a sweep can start another."""

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in STATE}

    def __exit__(self, *_: object) -> None:
        _waiting.clear()
        if dist.is_initialized():
            dist.destroy_process_group()
        for name, value in self.before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Lets SIGTERM, which `kill` and batch systems send, end a run as Ctrl-C does.

    Lightning alone would go on to the end of a prediction, and end a training with exit status 0. A handler
    that the caller has set is kept.
    """
    here = threading.current_thread() is threading.main_thread()  # only this one may set handlers
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
