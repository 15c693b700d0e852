"""Tables that compare the jobs of a sweep, or several runs: a row for each, a column for each number."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ribseg.pipeline.report.records import Record, mask_name, records_of
from ribseg.pipeline.report.table import TableData, percent

Job = dict[str, Any]  # "overrides", and "results" or the reason of its "failure"
Cells = dict[str, dict[str, str]]  # title of a table -> column -> text
RATIO_TITLE = "High gradient ratios"
RATIO_NOTE = (
    "Accuracy, share of seeds diverged, share of images saturated. High gradient ratio of the mark at the "
    "last convolution and at the class prediction; of mark, digit and rest at the latter after RIB."
)
RATIOS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "acc.": lambda result: result["accuracy"],
    "div.": lambda result: result["diverged"] / result["seeds"],
    "sat.": lambda result: result["saturation"],
    "mark\nconv": lambda result: result["before"]["non_discriminative"][-2],
    "mark\nfinal": lambda result: result["before"]["non_discriminative"][-1],
    "mark\nRIB": lambda result: result["after"]["non_discriminative"][-1],
    "digit\nRIB": lambda result: result["after"]["discriminative"][-1],
    "rest\nRIB": lambda result: result["after"]["irrelevant"][-1],
}


def sweep_tables(jobs: Sequence[Job]) -> list[TableData]:
    """A table for each kind of result, with a row per job: the overrides that differ, and the measurements.

    A failed job has a row in each table, and its reason in the note below.
    """
    rows = [job_cells(job["results"]) if "results" in job else {} for job in jobs]
    common = set.intersection(*(set(job["overrides"]) for job in jobs))
    names = [" ".join(o for o in job["overrides"] if o not in common) for job in jobs]
    named = list(zip(names, jobs, strict=True))
    failures = [f"{name} failed: {job['failure']}" for name, job in named if "failure" in job]
    tables = []
    for title in dict.fromkeys(title for row in rows for title in row) or ["Sweep"]:
        columns = list(dict.fromkeys(column for row in rows for column in row.get(title, {})))
        cells = []
        for (name, job), row in zip(named, rows, strict=True):
            missing = "failed" if "failure" in job else "-"
            cells.append([name, *(row.get(title, {}).get(column, missing) for column in columns)])
        notes = [*([RATIO_NOTE] if title == RATIO_TITLE else []), *failures]
        tables.append(TableData(title, ["overrides", *columns], cells, "\n".join(notes)))
    return tables


def job_cells(results: Mapping[str, Any]) -> Cells:
    """The numbers of a run in the tables of a sweep.

    Localization maps at the best and at the fixed threshold (without controls), the last variant of pseudo
    masks, every segmenter, and the ratios of the toy experiment.
    """
    found: Cells = {}
    variant = results.get("pseudo_masks", {}).get("variant")
    for record in records_of(results):
        place = _place(record, variant)
        if place:
            title, column = place
            found.setdefault(f"{title}, mIoU in percent", {})[column] = percent(record.value)
    if results.get("bottleneck"):
        values = {name: value(results["bottleneck"]) for name, value in RATIOS.items()}
        found[RATIO_TITLE] = {name: "-" if v is None else f"{v:.2f}" for name, v in values.items()}
    return found


def _place(record: Record, variant: str | None) -> tuple[str, str] | None:
    """The title and the column of a record in the tables of a sweep; None for one that is not compared."""
    kind = {"best_miou": "best", "miou_at_fixed": "fixed"}.get(record.measure)
    if record.part == "localization" and kind and not record.control:
        return f"Localization maps on {record.split}", f"{record.label}\n{kind}"
    if record.part == "pseudo_masks" and record.measure == "miou" and record.source == variant:
        return f"Pseudo masks ({mask_name(record.source)})", record.split
    if record.part == "segmenter" and record.measure == "miou":
        return "Segmenters", f"{record.source}, {record.split}"
    return None
