"""Work on single images in a pool of processes."""

from collections.abc import Callable, Sequence

from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.engines import Job


def run_pool(context: Context, work: Callable[[Job], None], jobs: Sequence[Job], title: str) -> None:
    """Does the jobs of the run's shard whose output file does not exist, in the run's engine.

    Args:
        context: of the run.
        work: on one job.
        jobs: of all images.
        title: of the progress.
    """
    missing = [job for job in context.share(jobs) if not job[-1].is_file()]
    done = context.engine.map(context, work, missing)
    for _ in context.track(done, title, len(missing), "file"):
        pass
