"""Parallel processing of items by worker processes or threads."""

import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from multiprocessing import (
    current_process,
    get_all_start_methods,
    get_context,
    get_start_method,
    parent_process,
    set_start_method,
)
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from ribseg.errors import RibsegError

T = TypeVar("T")
R = TypeVar("R")
RETRIES = 3  # times that the work of a killed process is done again
UNGUARDED = 76  # exit status of a process that `refuse_unguarded` ends
GUARD = (
    "ribseg is called when this program is imported, and new processes import it to find its functions: put "
    "the call under if __name__ == '__main__':"
)
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # set by launchers; Lightning's order

_jobs = 1  # of a sweep that run at the same time on this machine


def share_cores(jobs: int) -> None:
    """Divides the cores of this machine among the jobs of a sweep that run at the same time.

    To be called before torch is imported: OpenMP reads its settings then. Its threads wait for each other
    without giving up their core, which stops the other job's threads where there are more of them than
    cores. With "passive" they sleep; a setting of the user's stays.

    Args:
        jobs: their number, as joblib counts: -1 for one per core, -2 for one less, and so on.
    """
    global _jobs
    _jobs = 1
    _jobs = jobs if jobs > 0 else max(1, cores() + 1 + jobs)
    if _jobs > 1:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def use_own_start_method() -> None:
    """Makes new processes start as Python does by default, also inside a process of joblib.

    There joblib's own method is the default, whose processes torch's data loaders cannot start.
    """
    standard = get_all_start_methods()
    if get_start_method(allow_none=True) not in (None, *standard):
        set_start_method(standard[0], force=True)


def rank() -> int:
    """The rank of this process: in torch's process group, else as launchers set it in the environment."""
    if process_count() > 1:
        return int(sys.modules["torch.distributed"].get_rank())
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), 0)


def process_count() -> int:
    """The number of processes in torch's process group; 1 without one."""
    dist = sys.modules.get("torch.distributed")  # torch is not imported for this
    grouped = dist is not None and dist.is_available() and dist.is_initialized()
    return int(dist.get_world_size()) if dist is not None and grouped else 1


def cores() -> int:
    """The number of cores that this process may use; at least 1."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // _jobs)


def io_threads() -> int:
    """The number of threads for decoding files, which releases Python's lock: one per core, up to 8."""
    return min(8, cores())


def threads_per_process() -> int:
    """The number of threads of each process that works on its own images: OMP_NUM_THREADS, else one."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isdecimal() else 1


def worker_count(setting: int | str) -> int:
    """The number of processes of a setting: a number, or "auto" for as many as fill the cores."""
    return max(1, cores() // threads_per_process()) if setting == "auto" else int(setting)


def forks() -> bool:
    """Whether new processes are copies of this one, which share its memory and import nothing again.

    Not with a GPU, which a copy cannot use, and not where copies of a program with threads are not safe:
    outside of Linux, and after torch has started autograd's threads in this process.
    """
    torch = sys.modules.get("torch")
    if sys.platform != "linux" or (torch is not None and torch.accelerator.is_available()):
        return False
    return torch is None or _copies_differentiate(torch)


def _copies_differentiate(torch: Any) -> bool:
    """Whether autograd works in a copy of this process; torch does not say so, so that one is asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of copies of programs with threads
        child = os.fork()
    if child == 0:
        try:
            number = torch.ones((), requires_grad=True)
            with torch.enable_grad():
                (number * number).backward()
            os._exit(0)
        except RuntimeError:
            os._exit(1)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def refuse_unguarded() -> None:
    """Ends a new process that imports the program of its parent, and so comes to the same call.

    Else one would wait for the other's locks without end.
    """
    if getattr(current_process(), "_inheriting", False):  # what Python itself asks before it starts a process
        print(GUARD, file=sys.stderr)
        raise SystemExit(UNGUARDED)


def process_pool(workers: int, work: Callable[[Any], Any] | None = None) -> ProcessPoolExecutor:
    """A pool of processes with `threads_per_process()` threads each, which end with this one.

    Args:
        workers: number of processes.
        work: function for `do` in each process; unless they are forked, pickled once per process.
    """
    return ProcessPoolExecutor(
        workers, get_context("fork" if forks() else "spawn"), _initialize, (threads_per_process(), work)
    )


_work: Callable[[Any], Any] | None = None  # in a process of `process_pool`


def _initialize(number: int, work: Callable[[Any], Any] | None) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # not those of a progress bar that is drawn
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Work without torch need not wait for its import.
    os.environ["OMP_NUM_THREADS"] = str(number)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(number)
    _work = work


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def do(item: Any) -> bytes:
    """The result of the pool's `work` on an item, inside a process of the pool, as bytes of `pickle`.

    Torch would pass tensors on in shared memory, of which containers have little.
    """
    assert _work is not None
    return pickle.dumps(_work(item))


def ordered_map(
    work: Callable[[T], R], items: Iterable[T], workers: int, threads: bool = False
) -> Generator[R, None, None]:
    """Yields the results of `work` in the order of the items, computed at most `2 * workers` ahead.

    If a process is killed, as for want of memory, that is said, and the items that it may have had are done
    again, by half as many.

    Args:
        work: unless processes are forked it must be picklable: a function of a module, or a `partial` of one.
        items: for processes they must be picklable.
        workers: number of workers; 1 runs in this process.
        threads: use threads instead of processes, for work that releases Python's global lock.

    Raises:
        RibsegError: processes have died again and again.

    >>> list(ordered_map(len, ["a", "", "abc"], workers=2, threads=True))
    [1, 0, 3]
    """
    if workers <= 1:
        yield from map(work, items)
        return
    left, waiting = iter(items), deque[T]()
    received = _unchanged if threads else pickle.loads
    for deaths in range(RETRIES + 1):
        left = chain(tuple(waiting), left)
        waiting.clear()
        pool = ThreadPoolExecutor(workers) if threads else process_pool(workers, work)
        futures: deque[Future[Any]] = deque()
        try:
            for item in left:
                waiting.append(item)
                futures.append(pool.submit(work if threads else do, item))
                if len(futures) > 2 * workers:
                    yield received(_next(waiting, futures))
            while futures:
                yield received(_next(waiting, futures))
            pool.shutdown()
            return
        except BrokenProcessPool as error:
            said = why_broken(pool)
            if said == GUARD:
                raise RibsegError(said) from error
            if deaths == RETRIES:
                raise RibsegError(f"{said}. Tried {deaths + 1} times; finished files are kept") from error
            workers = max(1, workers // 2)
            warnings.warn(f"{said}. Its images are made again, by {workers}", stacklevel=2)
        finally:  # after Ctrl-C, too
            for process in _processes(pool):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)


def _unchanged(result: Any) -> Any:
    return result


def _next(waiting: deque[T], futures: deque[Future[Any]]) -> Any:
    result = futures.popleft().result()
    waiting.popleft()
    return result


def _processes(pool: Executor) -> list[BaseProcess]:
    # The standard library has no other name for them; Python 3.14 has one for killing them.
    return list((getattr(pool, "_processes", None) or {}).values())


def why_broken(pool: Executor) -> str:
    """How the processes of a pool ended that were not ended by the pool, and what to do."""
    said, processes = [], _processes(pool)
    ended = wait([process.sentinel for process in processes], timeout=1)
    for process in (process for process in processes if process.sentinel in ended):
        deadline = time.monotonic() + 1  # the pool's own thread may be about to learn it
        while process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.01)
        code = process.exitcode or -signal.SIGTERM
        if code == UNGUARDED:
            return GUARD
        if code != -signal.SIGTERM:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            said.append(f"the process {process.pid} {how}")
    ends = "; ".join(said) or "a process ended"
    return f"{ends}: often memory is short, and fewer processes (engine.processes) need less"
