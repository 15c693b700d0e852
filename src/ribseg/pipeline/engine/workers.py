"""Work on single images in a pool of processes."""

from collections.abc import Callable, Sequence
from typing import Any

from ribseg.pipeline.engine.context import Context
from ribseg.workers import ordered_map, worker_count

Job = tuple[Any, ...]  # image id, input files, and last the output file


def run_pool(context: Context, work: Callable[[Job], None], jobs: Sequence[Job], title: str) -> None:
    """Does the jobs of the run's shard whose output file does not exist, in `refine.workers` processes.

    Args:
        context: of the run.
        work: on one job.
        jobs: of all images.
        title: of the progress.
    """
    missing = [job for job in context.share(jobs) if not job[-1].is_file()]
    workers = worker_count(context.cfg.refine.workers)
    # Starting processes takes longer than a few images.
    done = ordered_map(work, missing, workers if len(missing) >= 2 * workers else 1)
    for _ in context.track(done, title, len(missing), "file"):
        pass
