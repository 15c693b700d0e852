"""The processes of a run: which is the first, how they wait for one another, part, and are ended."""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only

from ribseg.errors import RibsegError
from ribseg.store.run import Group

T = TypeVar("T")
STATE = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")

_waiting: dict[Any, Any] = {}  # process group -> one of the same processes, for waiting


class Processes(Group):
    """The processes of a run under Lightning, one or several.

    Args:
        minutes: that they wait for one that is late.
        apart: tells whether a launcher has started them, before a Trainer connects them.
    """

    def __init__(self, minutes: float, apart: Callable[[], bool] = lambda: False) -> None:
        self.minutes, self.apart = minutes, apart

    @property
    def first(self) -> bool:
        """Whether this process has rank 0."""
        return is_first_process()

    @property
    def connected(self) -> bool:
        """Whether a Trainer has connected the processes."""
        return dist.is_initialized()

    def agree(self, value: T) -> T:
        """The value of the first process, in all connected processes."""
        if not self.connected:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def agree_to_wait(self, held: bool) -> bool:
        """Whether the first process holds a lock, in all of them; else they ask again.

        Raises:
            RibsegError: they cannot wait for it together, because nothing connects them yet.
        """
        if not held and not self.connected and self.apart():
            raise RibsegError(
                "another run computes this result, and the processes of this one, which a launcher has "
                "started, cannot wait for it together yet. Start this run when the other one has ended"
            )
        return self.agree(held)

    def wait(self) -> None:
        """Waits until all connected processes are here.

        A group of its own waits, by gloo: a barrier of NCCL gives up after 10 minutes and names nobody, and
        the first process may well make masks for hours while the others wait.

        Raises:
            RibsegError: names those that have ended, or are later than `minutes`.
        """
        if not self.connected:
            return
        limit = timedelta(minutes=self.minutes)
        try:
            dist.monitored_barrier(waiting_group(self.minutes), timeout=limit, wait_all_ranks=True)
        except RuntimeError as error:
            raise RibsegError(_missing(self.running, self.minutes, str(error))) from error


def is_first_process() -> bool:
    """Whether this process has rank 0."""
    return cast(int, getattr(rank_zero_only, "rank", 0)) == 0


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


@contextmanager
def fresh_process_group() -> Iterator[None]:
    """Destroys a run's process group at its end and restores the environment, for the next run of a sweep."""
    before = {name: os.environ.get(name) for name in STATE}
    try:
        yield
    finally:
        _waiting.clear()
        if dist.is_initialized():
            dist.destroy_process_group()
        for name, value in before.items():
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
