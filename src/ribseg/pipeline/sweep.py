"""Sweeps (Hydra's multirun): a failed job does not stop the others, and tables compare all jobs."""

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ribseg.errors import ConfigError, RibsegError
from ribseg.files import write_json
from ribseg.pipeline.recipe.console import LoggedConsole
from ribseg.pipeline.report.mask_tables import mask_name
from ribseg.pipeline.report.table import TableData

FAILURE, RESULTS = "failure.json", "results.json"
OVERRIDES = ".hydra/overrides.yaml"  # what stood on the command line, as Hydra records it
Job = dict[str, Any]


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


def overrides_of(folder: Path) -> list[str]:
    """The overrides of the run in a folder, from the record that Hydra has left there."""
    found = OmegaConf.to_container(OmegaConf.load(folder / OVERRIDES))
    return list(map(str, found)) if isinstance(found, list) else []


def sweep_tables(jobs: list[Job]) -> list[TableData]:
    """A table for each kind of result, with a row per job: the overrides that differ, and the measurements.

    A failed job has a row in each table, and its reason in the note below.
    """
    rows = [measures(job["results"]) if "results" in job else {} for job in jobs]
    common = set.intersection(*(set(job["overrides"]) for job in jobs))
    names = [" ".join(o for o in job["overrides"] if o not in common) for job in jobs]
    named = list(zip(names, jobs, strict=True))
    failures = [f"{name} failed: {job['failure']}" for name, job in named if "failure" in job]
    kinds = list(dict.fromkeys(kind for row in rows for kind in row)) or ["Sweep"]
    return [_table(kind, names, jobs, rows, failures) for kind in kinds]


def _table(
    kind: str, names: list[str], jobs: list[Job], rows: list[dict[str, dict[str, str]]], failures: list[str]
) -> TableData:
    columns = list(dict.fromkeys(column for row in rows for column in row.get(kind, {})))
    cells = []
    for name, job, row in zip(names, jobs, rows, strict=True):
        missing = "failed" if "failure" in job else "-"
        cells.append([name, *(row.get(kind, {}).get(column, missing) for column in columns)])
    notes = [*([RATIO_NOTE] if kind == RATIO_TITLE else []), *failures]
    return TableData(kind, ["overrides", *columns], cells, "\n".join(notes))


def measures(results: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Kind of result -> column -> value as text: mIoU in percent, and the ratios of the toy experiment.

    Localization maps at the best and at the fixed threshold (without controls), the last variant of pseudo
    masks, every segmenter.
    """
    found: dict[str, dict[str, float | None]] = {}
    for source, scores in results.get("localization", {}).items():
        name = scores.get("label", source)
        for split, values in scores["split"].items() if not scores.get("control") else ():
            kind = found.setdefault(f"Localization maps on {split}, mIoU in percent", {})
            kind |= {f"{name}\nbest": values["best_miou"], f"{name}\nfixed": values["miou_at_fixed"]}
    masks = results.get("pseudo_masks", {"variant": None, "variants": {None: {}}})
    for split, values in masks["variants"][masks["variant"]].items():
        if isinstance(values, dict):
            kind = found.setdefault(f"Pseudo masks ({mask_name(masks['variant'])}), mIoU in percent", {})
            kind[split] = values["miou"]
    for source, scores in results.get("segmenter", {}).items():
        for split, values in scores["split"].items():
            found.setdefault("Segmenters, mIoU in percent", {})[f"{source}, {split}"] = values["miou"]
    cells = {kind: {name: _cell(v, 100, 1) for name, v in values.items()} for kind, values in found.items()}
    if results.get("bottleneck"):
        cells[RATIO_TITLE] = {name: _cell(v(results["bottleneck"]), 1, 2) for name, v in RATIOS.items()}
    return cells


def _cell(value: float | None, factor: int, digits: int) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


RATIO_TITLE = "High gradient ratios"
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


def job_number(folder: Path) -> tuple[int, str]:
    """A key that sorts the folders of jobs by their numbers, others by name."""
    return (int(folder.name) if folder.name.isdigit() else 0, folder.name)
