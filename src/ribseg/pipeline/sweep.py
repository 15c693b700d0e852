"""A multirun: every job runs, and one table at the end shows what was measured and what failed."""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from ribseg.data.files import atomic_write
from ribseg.errors import RibsegError
from ribseg.pipeline.console import make_console
from ribseg.pipeline.tables import CONTROL, NAMES, mask_name

FAILURE, RESULTS = "failure.json", "results.json"
Job = dict[str, Any]


@contextmanager
def recorded_failure() -> Iterator[None]:
    """Writes why a job of a sweep has failed into its folder; the other jobs run, and the table says it.

    Outside of a sweep errors pass. Other sweepers than Hydra's basic one are told of the failure: they choose
    what comes next by it.
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
        atomic_write(folder / FAILURE, json.dumps({"reason": reason}).encode())
        if "BasicSweeper" not in str(job.sweeper.get("_target_")):
            raise


class SweepTable(Callback):
    """Hydra callback: prints the results of all jobs and writes `sweep.json` into the sweep's folder.

    The program's exit status is 1 if a job has failed.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """After the last job."""
        folder = Path(config.hydra.sweep.dir)
        places = {path.parent for name in (RESULTS, FAILURE) for path in folder.glob(f"*/{name}")}
        jobs = [read_job(place) for place in sorted(places, key=_job_number)]
        if not jobs:
            return
        atomic_write(folder / "sweep.json", json.dumps(jobs, indent=1).encode())
        make_console().print(sweep_table(jobs))
        if any("failure" in job for job in jobs):
            sys.exit(1)


def read_job(folder: Path) -> Job:
    """The overrides of one job, and its results or why it failed."""
    overrides = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
    failure = folder / FAILURE
    if failure.is_file():
        return {"overrides": overrides, "failure": json.loads(failure.read_text())["reason"]}
    return {"overrides": overrides, "results": json.loads((folder / RESULTS).read_text())}


def sweep_table(jobs: list[Job]) -> Table:
    """A row per job: the overrides that differ, and all that was measured; a failed job with its reason."""
    rows = [measures(job["results"]) if "results" in job else {} for job in jobs]
    common = set.intersection(*(set(job["overrides"]) for job in jobs))
    names = [" ".join(o for o in job["overrides"] if o not in common) for job in jobs]
    notes = [
        f"{name} failed: {job['failure']}" for name, job in zip(names, jobs, strict=True) if "failure" in job
    ]
    if any("bottleneck" in job.get("results", {}) for job in jobs):
        notes.insert(0, RATIO_NOTE)
    table = Table(
        title="Sweep", title_justify="left", caption="\n".join(notes) or None, caption_justify="left"
    )
    table.add_column("overrides", overflow="fold")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        table.add_column(column, justify="right")
    for name, job, row in zip(names, jobs, rows, strict=True):
        table.add_row(name, *(row.get(c, "failed" if "failure" in job else "-") for c in columns))
    return table


def measures(results: dict[str, Any]) -> dict[str, str]:
    """Title -> value of what a run has measured: mIoU in percent, and the toy experiment's ratios.

    Localization maps on each split at the best and at the fixed threshold (controls stand in the run's
    report), the last variant of pseudo masks, every segmenter.
    """
    found: dict[str, float | None] = {}
    for source, scores in results.get("localization", {}).items():
        name = NAMES.get(source, source)
        if not name.endswith(CONTROL):
            for split, values in scores["split"].items():
                found[f"{name} {split}\nbest"] = values["best_miou"]
                found[f"{name} {split}\nfixed"] = values["miou_at_fixed"]
    masks = results.get("pseudo_masks", {"variant": None, "variants": {None: {}}})
    for split, values in masks["variants"][masks["variant"]].items():
        if isinstance(values, dict):
            found[f"masks {split}\n{mask_name(masks['variant'])}"] = values["miou"]
    for source, scores in results.get("segmenter", {}).items():
        for split, values in scores["split"].items():
            found[f"segmenter\n{source} {split}"] = values["miou"]
    cells = {name: "-" if value is None else f"{100 * value:.1f}" for name, value in found.items()}
    toy = results.get("bottleneck")
    ratios = {name: value(toy) for name, value in RATIOS.items()} if toy else {}
    return cells | {name: "-" if value is None else f"{value:.2f}" for name, value in ratios.items()}


RATIO_NOTE = (
    "Accuracy, share of seeds diverged, share of images saturated. High gradient ratio of the mark at the "
    "last convolution and at the class prediction; of mark, digit and rest at the latter after RIB."
)
RATIOS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "acc.": lambda result: result["accuracy"],
    "div.": lambda result: result["diverged"] / result["seeds"],
    "sat.": lambda result: result["saturation"],
    "mark\nconv": lambda result: result["before"]["non_discriminative"][-2],
    "mark\nfinal": lambda result: result["before"]["non_discriminative"][-1],
    "mark\nRIB": lambda result: result["after"]["non_discriminative"][-1],
    "digit\nRIB": lambda result: result["after"]["discriminative"][-1],
    "rest\nRIB": lambda result: result["after"]["irrelevant"][-1],
}


def _job_number(folder: Path) -> tuple[int, str]:
    return (int(folder.name) if folder.name.isdigit() else 0, folder.name)
