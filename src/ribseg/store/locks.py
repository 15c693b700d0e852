"""Locks on artefacts, so that runs which share a store compute each result once.

`<root>/<stage>-<digest>.lock` beside the artefact's folder, locked with `flock`: the operating system gives
it back when the process ends, however it ends. The file exists only while it is held, or after a kill.
"""

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ENDING = ".lock"
POLL = 0.5  # seconds between two attempts
# What file systems without such locks answer: NFS without its lock service, Lustre without flock, some FUSE.
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
Say = Callable[[str], None]

_held: dict[tuple[Path, int], int] = {}  # (lock file, thread) -> descriptor, of this process
_unprotected: set[Path] = set()  # stores of which it has been said


class StoreLock:
    """The lock of an artefact, held by one thread of one process at a time.

    Args:
        folder: of the artefact; its last part is `<stage>-<digest>`.
        stage: named while waiting.
        say: prints a line.
    """

    def __init__(self, folder: Path, stage: str, say: Say) -> None:
        self.path = folder.parent.resolve() / f"{folder.name}{ENDING}"
        self.stage, self.say = stage, say
        self.key, self.owned, self.said = (self.path, threading.get_ident()), False, ""

    def acquire(self) -> bool:
        """Whether it is held from now on; if not, says who holds it, once.

        True as well if this thread holds it already, or if there are no locks on this file system.
        """
        if self.key in _held:
            return True
        if fcntl is None:
            self._say_unprotected("this system has no flock")
            return True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self.owned = self._lock(descriptor)
            if self.owned:
                _held[self.key] = descriptor
                _sign(descriptor)
            else:
                self._say_holder(descriptor)
        finally:
            if not self.owned:
                os.close(descriptor)
        return self.owned

    def release(self) -> None:
        """Removes the lock file and gives the lock back, if `acquire` has taken it."""
        descriptor = _held.pop(self.key, None) if self.owned else None
        self.owned = False
        if descriptor is not None:
            self.path.unlink(missing_ok=True)  # before others can lock it: they see that it is gone
            os.close(descriptor)

    def is_free(self) -> bool:
        """Whether nobody holds it; if somebody does, says who, once."""
        free = self.acquire()
        self.release()
        return free

    def _lock(self, descriptor: int) -> bool:
        """Whether the open file is locked now, and still is the one that others find at the path."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except (BlockingIOError, FileNotFoundError):
            return False  # another holds it, or has removed the file since it was opened
        except OSError as error:
            if error.errno == errno.ESTALE:  # removed by another machine
                return False
            if error.errno not in UNSUPPORTED:
                raise
            self._say_unprotected(str(error.strerror))
            return True

    def _say_holder(self, descriptor: int) -> None:
        holder = os.read(descriptor, 500).decode(errors="replace") or "another process computes"
        if holder != self.said:
            self.say(f"waiting for {self.stage}, which {holder}")
            self.said = holder

    def _say_unprotected(self, why: str) -> None:
        store = self.path.parent
        if store not in _unprotected:
            _unprotected.add(store)
            self.say(
                f"{store} cannot be locked ({why}): of runs that share it, let only one compute "
                "the same result at a time"
            )


def _sign(descriptor: int) -> None:
    """Writes who holds a lock into its file, as the rest of the sentence "waiting for ..., which"."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = f"process {os.getpid()} on {socket.gethostname()} has been computing since {since}"
    os.ftruncate(descriptor, 0)
    os.write(descriptor, holder.encode())


@contextmanager
def locked(
    folder: Path, stage: str, say: Say, takes: bool = True, agree: Callable[[bool], bool] = bool
) -> Iterator[None]:
    """Holds the lock of an artefact, after waiting for it and for its parts (`locked_part`).

    Args:
        folder: see `StoreLock`.
        stage: see `StoreLock`.
        say: prints a line.
        takes: False in the other processes of a distributed run, which wait for the one that takes it.
        agree: gives all of these processes what the one that takes it has got.
    """
    lock, parts = StoreLock(folder, stage, say), dict[Path, StoreLock]()

    def acquire() -> bool:
        if not lock.acquire():
            return False
        for path in folder.parent.glob(f"{folder.name}.*{ENDING}"):
            parts.setdefault(path, StoreLock(path.with_suffix(""), f"a part of {stage}", say))
        return all(part.is_free() for part in parts.values())

    with _held_after_waiting(lock, acquire, takes, agree):
        yield


@contextmanager
def locked_part(
    folder: Path, part: str, stage: str, say: Say, takes: bool = True, agree: Callable[[bool], bool] = bool
) -> Iterator[None]:
    """Holds the lock of a part of an artefact; other parts are free, the whole is not.

    Args:
        folder: see `StoreLock`.
        part: its name, that of a file.
        stage: see `StoreLock`.
        say: see `locked`.
        takes: see `locked`.
        agree: see `locked`.
    """
    whole = StoreLock(folder, stage, say)
    own = StoreLock(folder.with_name(f"{folder.name}.{part}"), f"{part} of {stage}", say)

    def acquire() -> bool:
        try:  # the whole only for a moment: it is free, and who takes it next sees this part
            return whole.acquire() and own.acquire()
        finally:
            whole.release()

    with _held_after_waiting(own, acquire, takes, agree):
        yield


@contextmanager
def _held_after_waiting(
    lock: StoreLock, acquire: Callable[[], bool], takes: bool, agree: Callable[[bool], bool]
) -> Iterator[None]:
    try:
        # In a loop, because other processes would give up if the first one answered only after hours.
        while not agree(acquire() if takes else True):
            time.sleep(POLL)
        yield
    finally:
        lock.release()


def _forget() -> None:
    """Closes the locks that a forked process has inherited; a worker that is left over must not hold them."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
