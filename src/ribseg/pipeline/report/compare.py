"""Comparison of finished runs on the images that all of them evaluated, with paired intervals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ribseg.errors import DataError, list_problems
from ribseg.metrics import bootstrap_miou, interval, pooled_scores
from ribseg.pipeline.report.answer import remark
from ribseg.pipeline.report.finished import FinishedRun, differing_settings
from ribseg.pipeline.report.table import signed_interval
from ribseg.pipeline.stages.evaluate import shown_threshold

Bounds = tuple[float, float]
SEED = "seed"  # runs that differ in it alone are repetitions


@dataclass(frozen=True)
class ComparedMaps:
    """The maps of a source in a run, or in several runs that took the same ones from the store.

    Attributes:
        source: name in `results.json`.
        label: in tables, with the runs' names unless all runs have the same maps.
        control: whether it is a control.
        runs: that have these maps.
    """

    source: str
    label: str
    control: bool
    runs: tuple[FinishedRun, ...]

    @property
    def name(self) -> str:
        """Different from those of all others."""
        return f"{self.source}/{self.runs[0].name}"

    @property
    def plain_label(self) -> str:
        """That of the source, without the names of runs."""
        return str(self.runs[0].results["localization"][self.source]["label"])

    def scores(self, split: str) -> Mapping[str, Any]:
        """The scores of a split, as in `results.json`."""
        scores: Mapping[str, Any] = self.runs[0].results["localization"][self.source]["split"][split]
        return scores


class Difference(NamedTuple):
    """The difference of the mIoU of some maps to that of others, on the same images.

    Attributes:
        to: the maps of the same source in the first run that has it.
        value: fraction.
        bounds: paired 95 % bootstrap interval over images.
        joint_bounds: the same, so wide that all intervals of the split hold together in 95 % of the cases
            (Bonferroni).
    """

    to: ComparedMaps
    value: float
    bounds: Bounds
    joint_bounds: Bounds


class Row(NamedTuple):
    """Scores of maps on a split.

    Attributes:
        maps: that are scored.
        threshold: see `shown_threshold`.
        miou: at this threshold, fraction.
        bounds: 95 % bootstrap interval over images.
        difference: None for the maps of the first run that has the source.
    """

    maps: ComparedMaps
    threshold: float
    miou: float
    bounds: Bounds
    difference: Difference | None = None


@dataclass(frozen=True)
class Comparison:
    """The comparison of some runs.

    Args:
        runs: at least two.
        resamples: of the bootstrap over images.

    Raises:
        DataError: the runs were evaluated on different images or masks.
    """

    runs: Sequence[FinishedRun]
    resamples: int

    def __post_init__(self) -> None:
        for split, ids in self.images.items():
            first, *others = (run.counts[split] for run in self.evaluated)
            true, name = first.true_pixels(ids), self.evaluated[0].name
            for run, counts in zip(self.evaluated[1:], others, strict=True):
                if counts.num_labels != first.num_labels:
                    found = f"{run.name} has {counts.num_labels - 1} classes, {name} {first.num_labels - 1}"
                    raise DataError(f"{found}; only runs on the same data can be compared")
                differ = (counts.true_pixels(ids) != true).any(1)
                if differ.any():
                    wrong = [image_id for image_id, other in zip(ids, differ, strict=True) if other]
                    title = f"{run.name} and {name} have different masks of images with the same id"
                    advice = "Only runs on the same data can be compared."
                    raise DataError(list_problems(title, {split: wrong}, advice))

    @cached_property
    def evaluated(self) -> list[FinishedRun]:
        """The runs with scores of localization maps."""
        return [run for run in self.runs if run.counts]

    @cached_property
    def images(self) -> dict[str, tuple[str, ...]]:
        """Split -> ids of the images that all evaluated runs have in it, in the order of the first one.

        Raises:
            DataError: there are such runs, but no such image.
        """
        if not self.evaluated:
            return {}
        first, *others = (run.counts for run in self.evaluated)
        images = {}
        for split, counts in first.items():
            common = set(counts.ids).intersection(*(o[split].ids if split in o else () for o in others))
            if common:
                images[split] = tuple(one for one in counts.ids if one in common)
        if not images:
            names = ", ".join(f"{run.name}: {', '.join(run.counts)}" for run in self.evaluated)
            raise DataError(f"no image was evaluated in all runs ({names}), so they cannot be compared")
        return images

    @cached_property
    def maps(self) -> list[ComparedMaps]:
        """All maps, each once, by source in the order of the first run that has it."""
        sources = dict.fromkeys(source for run in self.evaluated for source in run.results["localization"])
        found = []
        for source in sources:
            groups: dict[str, list[FinishedRun]] = {}
            for run in self.evaluated:
                if source in run.results["localization"]:
                    groups.setdefault(_origin(run, source), []).append(run)
            for group in groups.values():
                values = group[0].results["localization"][source]
                names = "" if len(groups) == 1 else f", {' = '.join(run.name for run in group)}"
                label, control = f"{values['label']}{names}", bool(values["control"])
                found.append(ComparedMaps(source, label, control, tuple(group)))
        return found

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """Split -> scores of all maps."""
        images = self.images.items()
        return {split: compared_rows(self.maps, split, ids, self.resamples) for split, ids in images}

    @cached_property
    def settings(self) -> dict[str, list[str]]:
        """See `differing_settings`."""
        return differing_settings(self.runs)

    @cached_property
    def repetitions(self) -> dict[str, list[FinishedRun]]:
        """Name of the first, without its seed -> runs that differ in their seeds alone, at least two."""
        others = [values for name, values in self.settings.items() if name != SEED]
        groups: dict[tuple[str, ...], list[FinishedRun]] = {}
        for place, run in enumerate(self.runs):
            groups.setdefault(tuple(values[place] for values in others), []).append(run)
        found = {}
        for group in groups.values():
            words = [word for word in group[0].name.split() if not word.startswith(f"{SEED}=")]
            if len(group) > 1:
                found[" ".join(words) or "all"] = group
        return found


def _origin(run: FinishedRun, source: str) -> str:
    """What the scored maps of a source depend on: their place in the store, changes, and thresholds."""
    known = run.sources[source]
    changes = None if known.entry is None else known.entry.settings
    scores = run.results["localization"][source]["split"]
    thresholds = {split: shown_threshold(values) for split, values in scores.items()}
    place = str(run.artefacts[known.stage].folder.resolve())
    return json.dumps([place, changes, thresholds], default=str)


def compared_rows(maps: Sequence[ComparedMaps], split: str, ids: Sequence[str], resamples: int) -> list[Row]:
    """The scores of all maps on the images of a split."""
    draws: dict[str, np.ndarray] = {}
    first: dict[str, Row] = {}  # source -> that of the first run
    rows = []
    differences = len(maps) - len({one.source for one in maps})
    for one in maps:
        counts = one.runs[0].counts[split].of(one.source, ids)
        draws[one.name] = bootstrap_miou(counts, resamples)
        miou, threshold = float(pooled_scores(counts).miou), shown_threshold(one.scores(split))
        row = Row(one, threshold, miou, interval(draws[one.name]))
        if one.source in first:
            base = first[one.source]
            paired = draws[one.name] - draws[base.maps.name]
            bounds, joint = interval(paired), interval(paired, 1 - 0.05 / differences)
            row = row._replace(difference=Difference(base.maps, miou - base.miou, bounds, joint))
        first.setdefault(one.source, row)
        rows.append(row)
    return rows


def run_scores(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Source and name of a run -> mIoU of its maps; runs that share maps have the same."""
    return {(row.maps.source, run.name): row.miou for row in rows for run in row.maps.runs}


def sentences(comparison: Comparison) -> list[str]:
    """What the comparison found: for each method, how its best run differs from the first one."""
    if not comparison.rows:
        return []
    split, rows = list(comparison.rows.items())[-1]
    images = len(comparison.images[split])
    texts = []
    for source in dict.fromkeys(row.maps.source for row in rows if not row.maps.control):
        first, *others = (row for row in rows if row.maps.source == source)
        if others:
            texts.append(_sentence(first, others, f"{split} ({images:,} images)"))
    return texts or [f"All runs have the same maps on {split}."]


def _sentence(first: Row, others: Sequence[Row], where: str) -> str:
    best = max(others, key=lambda row: row.miou)
    assert best.difference is not None
    alone = len(others) == 1
    bounds = best.difference.bounds if alone else best.difference.joint_bounds
    kind = "95 % interval" if alone else "95 % interval, jointly with all other differences,"
    of_all = "" if alone else f", the best of {len(others)} others,"
    return (
        f"{first.maps.label}: {100 * first.miou:.1f} mIoU on {where}; {best.maps.label}{of_all} "
        f"{100 * best.miou:.1f}: {100 * best.difference.value:+.1f}, {kind} {signed_interval(bounds)}."
        f"{remark(bounds)}"
    )


def plain_values(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain values, for `comparison.json`."""
    return {
        "runs": {run.name: str(run.folder) for run in comparison.runs},
        "settings": {
            name: dict(zip((run.name for run in comparison.runs), values, strict=True))
            for name, values in comparison.settings.items()
        },
        "resamples": comparison.resamples,
        "split": {
            split: {"images": len(comparison.images[split]), "maps": list(map(_plain_row, rows))}
            for split, rows in comparison.rows.items()
        },
    }


def _plain_row(row: Row) -> dict[str, Any]:
    found = row.difference
    difference = None if found is None else found._asdict() | {"to": found.to.runs[0].name}
    return {
        "source": row.maps.source,
        "runs": [run.name for run in row.maps.runs],
        "control": row.maps.control,
        "threshold": row.threshold,
        "miou": row.miou,
        "interval": row.bounds,
        "difference": difference,
    }
