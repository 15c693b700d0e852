"""The same work on many items, shared out to processes or threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def worker_count(setting: int | str) -> int:
    """How many workers a setting stands for: a number, or "auto" for one per core."""
    return (os.cpu_count() or 1) if setting == "auto" else int(setting)


def process_pool(workers: int, work: Callable[[Any], Any] | None = None) -> ProcessPoolExecutor:
    """Fresh processes with one thread each; forked ones would inherit torch's locks, and CUDA.

    Args:
        workers: how many.
        work: what `do` does in them; it may hold a data set, and travels once, not with every item.
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin, (work,))


_work: Callable[[Any], Any] | None = None  # of a process of `process_pool`


def _begin(work: Callable[[Any], Any] | None) -> None:
    import torch

    global _work
    torch.set_num_threads(1)  # the other processes need the cores, too
    _work = work


def do(item: Any) -> Any:
    """The work of the pool that this process is of, on an item."""
    assert _work is not None
    return _work(item)


def ordered_map(
    work: Callable[[T], R], items: Iterable[T], workers: int, threads: bool = False
) -> Iterator[R]:
    """The results of `work` in the order of the items, at most `2 * workers` ahead of whoever takes them.

    Args:
        work: for processes a function of a module, or a `partial` of one.
        items: for processes what can be pickled.
        workers: with 1 the work is done here.
        threads: in threads, for work that leaves Python's lock, instead of processes.

    >>> list(ordered_map(len, ["a", "", "abc"], workers=2, threads=True))
    [1, 0, 3]
    """
    if workers <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) if threads else process_pool(workers, work) as pool:
        ahead: deque[Future[R]] = deque()
        for item in items:
            ahead.append(pool.submit(work if threads else do, item))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
