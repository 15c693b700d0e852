"""Parallel processing of items by worker processes or threads."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_all_start_methods, get_context, get_start_method, set_start_method
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
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


def worker_count(setting: int | str) -> int:
    """The number of workers of a setting: a number, or "auto" for one per core."""
    return cores() if setting == "auto" else int(setting)


def process_pool(workers: int, work: Callable[[Any], Any] | None = None) -> ProcessPoolExecutor:
    """A pool of spawned processes with one thread each; forked ones would inherit torch's locks and CUDA.

    Args:
        workers: number of processes.
        work: function for `do` in each process; pickled once per process, not per item.
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), _initialize, (work,))


_work: Callable[[Any], Any] | None = None  # in a process of `process_pool`


def _initialize(work: Callable[[Any], Any] | None) -> None:
    global _work
    # The cores are shared with the other processes. Work without torch need not wait for its import.
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    _work = work


def do(item: Any) -> Any:
    """Applies the pool's `work` to an item, inside a process of the pool."""
    assert _work is not None
    return _work(item)


def ordered_map(
    work: Callable[[T], R], items: Iterable[T], workers: int, threads: bool = False
) -> Iterator[R]:
    """Yields the results of `work` in the order of the items, computed at most `2 * workers` ahead.

    Args:
        work: for processes it must be picklable: a function of a module, or a `partial` of one.
        items: for processes they must be picklable.
        workers: number of workers; 1 runs in this process.
        threads: use threads instead of processes, for work that releases Python's global lock.

    >>> list(ordered_map(len, ["a", "", "abc"], workers=2, threads=True))
    [1, 0, 3]
    """
    if workers <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) if threads else process_pool(workers, work) as pool:
        pending: deque[Future[R]] = deque()
        for item in items:
            pending.append(pool.submit(work if threads else do, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
