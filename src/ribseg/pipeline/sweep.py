"""One table at the end of a multirun."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from ribseg.data.files import atomic_write
from ribseg.pipeline.console import make_console


class SweepTable(Callback):
    """Hydra callback: prints the results of all jobs and writes `sweep.json` into the sweep's folder."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """After the last job."""
        folder = Path(config.hydra.sweep.dir)
        jobs = [read_job(path) for path in sorted(folder.glob("*/results.json"), key=_job_number)]
        if not jobs:
            return
        atomic_write(folder / "sweep.json", json.dumps(jobs, indent=1).encode())
        make_console().print(sweep_table(jobs))


def read_job(path: Path) -> dict[str, Any]:
    """Overrides and results of one job."""
    overrides = OmegaConf.to_container(OmegaConf.load(path.parent / ".hydra" / "overrides.yaml"))
    return {"overrides": overrides, "results": json.loads(path.read_text())}


def sweep_table(jobs: list[dict[str, Any]]) -> Table:
    """A row per job: the overrides that differ, and what was measured.

    CAM's and RIB's scores on each split, or the toy experiment's high gradient ratios.
    """
    if "bottleneck" in jobs[0]["results"]:
        return ratio_table(jobs)
    common = set.intersection(*(set(job["overrides"]) for job in jobs))
    table = Table(title="Sweep: mIoU in percent", title_justify="left")
    table.add_column("overrides", no_wrap=True)
    columns = [
        (source, split)
        for source, values in jobs[0]["results"].get("localization", {}).items()
        if source in ("cam", "rib")
        for split in values["split"]
    ]
    for source, split in columns:
        table.add_column(f"{source.upper()} {split}\nbest", justify="right")
        table.add_column("\nfixed", justify="right")
    for job in jobs:
        cells = [" ".join(o for o in job["overrides"] if o not in common)]
        for source, split in columns:
            values = job["results"]["localization"][source]["split"][split]
            cells += [_percent(values["best_miou"]), _percent(values["miou_at_fixed"])]
        table.add_row(*cells)
    return table


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


def ratio_table(jobs: list[dict[str, Any]]) -> Table:
    """A row per job of the toy experiment."""
    common = set.intersection(*(set(job["overrides"]) for job in jobs))
    table = Table(
        title="Sweep: high gradient ratios", caption=RATIO_NOTE, caption_justify="left", title_justify="left"
    )
    table.add_column("overrides", no_wrap=True)
    for name in RATIOS:
        table.add_column(name, justify="right")
    for job in jobs:
        result = job["results"].get("bottleneck")
        values = [None if result is None else value(result) for value in RATIOS.values()]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        table.add_row(" ".join(o for o in job["overrides"] if o not in common), *cells)
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _job_number(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return (int(name) if name.isdigit() else 0, name)
