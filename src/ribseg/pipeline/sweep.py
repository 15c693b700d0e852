"""Sweeps (Hydra's multirun): a failed job does not stop the others, and tables compare all jobs."""

import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from ribseg.errors import ConfigError, RibsegError
from ribseg.files import write_json
from ribseg.pipeline.recipe.console import LoggedConsole
from ribseg.pipeline.report.finished import RESULTS, job_number, overrides_of
from ribseg.pipeline.report.sweep_tables import Job, sweep_tables

FAILURE = "failure.json"


@contextmanager
def recorded_failure() -> Iterator[None]:
    """Records the error of a failed job of a sweep in its folder, so that the other jobs can run.

    Outside of a sweep errors propagate; so they do for sweepers other than Hydra's basic one, which choose
    the next job by the result of this one.
    """
    job = HydraConfig.get()
    if job.mode != RunMode.MULTIRUN:
        yield
        return
    folder = Path(job.runtime.output_dir)
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if not isinstance(error, RibsegError):
            traceback.print_exc()
        reason = str(error) if isinstance(error, RibsegError) else f"{type(error).__name__}: {error}"
        print(f"\nribseg: this job of the sweep failed: {reason}", file=sys.stderr)
        write_json(folder / FAILURE, {"reason": reason}, indent=None)
        if "BasicSweeper" not in str(job.sweeper.get("_target_")):
            raise


def check_swept(params: Mapping[str, str] | None, overrides: Sequence[str]) -> None:
    """Refuses a single run with `sweep=NAME`, in which the sweep would have no effect.

    The command of a single job, which names a value for each swept setting, is let through.

    Args:
        params: Hydra's `hydra.sweeper.params`: setting -> its values.
        overrides: of the run.

    Raises:
        ConfigError: a swept setting is not given.
    """
    given = {override.partition("=")[0] for override in overrides}
    absent = [name for name in params or {} if name not in given]
    if absent:
        raise ConfigError(
            f"sweep=... has values for {', '.join(absent)}, one for each job of a sweep: add -m"
        )


class SweepTable(Callback):
    """Hydra callback: prints the results of all jobs and writes `sweep.json` into the sweep's folder.

    The exit status is 1 if a job has failed.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints and writes the results after the last job."""
        folder = Path(config.hydra.sweep.dir)
        places = {path.parent for name in (RESULTS, FAILURE) for path in folder.glob(f"*/{name}")}
        jobs = [read_job(place) for place in sorted(places, key=job_number)]
        if not jobs:
            return
        write_json(folder / "sweep.json", jobs)
        console = LoggedConsole()
        console.print(*(table.for_terminal() for table in sweep_tables(jobs)))
        if sum("results" in job for job in jobs) > 1:
            console.say(f"ribseg report {folder}: the jobs beside each other, with intervals and pictures")
        if any("failure" in job for job in jobs):
            sys.exit(1)


def read_job(folder: Path) -> Job:
    """The overrides of one job, with its results or the reason of its failure."""
    overrides = overrides_of(folder)
    failure = folder / FAILURE
    if failure.is_file():
        return {"overrides": overrides, "failure": json.loads(failure.read_text())["reason"]}
    return {"overrides": overrides, "results": json.loads((folder / RESULTS).read_text())}
