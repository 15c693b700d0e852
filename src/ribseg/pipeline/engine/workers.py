"""Work on single images in a pool of processes."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, TypeVar

from rich.progress import track

from ribseg.modules.callbacks import one_thread
from ribseg.pipeline.engine.context import Context

T = TypeVar("T")
_chosen: Callable[[Any], None]  # in a process of `run_pool`: what it does
Job = tuple[Any, ...]  # the image's id, files that are read, and last the one that is written


def run_pool(context: Context, work: Callable[[Job], None], jobs: Sequence[Job], title: str) -> None:
    """Does the jobs whose file is not there yet, in `refine.workers` processes."""
    open_jobs = [job for job in jobs if not job[-1].is_file()]
    number = context.cfg.refine.workers
    workers = (os.cpu_count() or 1) if number == "auto" else int(number)
    show = partial(track, total=len(open_jobs), disable=not context.cfg.progress, console=context.console)
    if workers <= 1 or len(open_jobs) < 2 * workers:
        for job in show(open_jobs, title):
            work(job)
        return
    # Fresh processes: forked ones would inherit the locks of torch's threads.
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (work,)) as pool:
        for _ in show(pool.map(_work, open_jobs, chunksize=4), title):
            pass


def _begin(work: Callable[[Job], None]) -> None:
    """Prepares a process: what it does may hold a data set, which travels once, not with every job."""
    global _chosen
    one_thread()
    _chosen = work


def _work(job: Job) -> None:
    _chosen(job)


def ordered_map(work: Callable[[str], T], items: Iterable[str], workers: int) -> Iterator[T]:
    """`map` over threads, in order, with a bounded number of results in memory."""
    with ThreadPoolExecutor(workers) as pool:
        queue: deque[Future[T]] = deque()
        for item in items:
            queue.append(pool.submit(work, item))
            if len(queue) > 2 * workers:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
