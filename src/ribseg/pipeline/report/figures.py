"""The figures of a report: drawn from records, written as PNG beside the page, and shown in it as SVG."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from markupsafe import Markup

from ribseg.errors import DataError
from ribseg.files import atomic_write
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.report.records import Record, select, series, splits_of
from ribseg.pipeline.stages.bottleneck import EXAMPLES
from ribseg.plot import class_figure, coverage_figure, group_figure, png_of, svg_of, threshold_figure
from ribseg.plot.gradients import INCHES, coloured_regions, draw_gradients, draw_ratios
from ribseg.types import PHASES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = dict[str, dict[str, list[float | None]]]  # panel -> name of a line -> values
GROUPINGS = {"by_number_of_classes": "number of classes", "by_object_size": "object size"}


class Drawing(NamedTuple):
    """A figure of a page: an SVG element, and its caption."""

    drawing: Markup
    title: str


def figure(session: Session, name: str, drawn: "Figure", title: str) -> Drawing:
    """Writes a figure as PNG into the run's folder; returns it as SVG for the page."""
    atomic_write(session.output / f"{name}.png", png_of(drawn, dpi=150))
    return Drawing(Markup(svg_of(drawn, title)), title)


def map_figures(session: Session, records: Sequence[Record]) -> list[Drawing]:
    """The figures of the methods' scores on the last split."""
    split = splits_of(records, "localization")[-1]
    last = [one for one in records if one.split == split]
    methods = [one for one in last if not one.control]
    figures = [
        figure(session, "curves", threshold_figure(curves(methods)), f"Scores on {split} over the threshold"),
        class_bars(session, "classes", methods, f"IoU per class, {split}, at fixed thresholds"),
        figure(session, "groups", group_figure(*groups(methods)), f"mIoU on {split} in groups of images"),
    ]
    coverage = [replace(one, label=one.name) for one in last if one.measure == "coverage"]
    if coverage:
        title = f"Coverage of the objects on {split} by distance from CAM's peak"
        figures.append(figure(session, "coverage", coverage_figure(series(coverage)), title))
    return figures


def segmenter_figures(session: Session, records: Sequence[Record]) -> list[Drawing]:
    """The figure of the segmenters' IoU of each class."""
    named = [replace(one, label=f"{one.label}, {one.split}") for one in records]
    return [class_bars(session, "segmenters", named, "IoU per class of the segmenters")]


def bottleneck_figures(session: Session, records: Sequence[Record]) -> list[Drawing]:
    """The figure of the toy experiment."""
    examples = session.artefacts["bottleneck"].folder / EXAMPLES
    title = "Gradients per layer before and after RIB, and high gradient ratios"
    return [figure(session, "bottleneck", bottleneck_figure(records, examples), title)]


def curves(records: Sequence[Record]) -> Lines:
    """Label -> measure -> values over all thresholds."""
    found: Lines = {}
    for record in records:
        if record.measure == "curve":
            values = found.setdefault(record.label, {"thresholds": []})
            values.setdefault(record.place, []).append(record.value)
            if record.place == "miou":
                values["thresholds"].append(record.threshold)
    return found


def groups(records: Sequence[Record]) -> tuple[Lines, dict[str, list[str]]]:
    """The mIoU in groups of images.

    Returns:
        Grouping -> label -> mIoU of each group; grouping -> names of its groups.
    """
    values, names = {}, {}
    for measure, title in GROUPINGS.items():
        found = select(records, "localization", measure)
        if found:
            values[title] = series(found)
            names[title] = list(dict.fromkeys(f"{one.place}\n(n = {one.number})" for one in found))
    return values, names


def class_bars(session: Session, name: str, records: Sequence[Record], title: str) -> Drawing:
    """The figure of the IoU of all classes that occur for some source; by split for segmenters."""
    found = [one for one in records if one.measure == "class_iou"]
    occurring = {one.place for one in found if one.value is not None}
    names = list(dict.fromkeys(one.place for one in found if one.place in occurring))
    shown = series([one for one in found if one.place in occurring])
    return figure(session, name, class_figure(shown, names), title)


def bottleneck_figure(records: Sequence[Record], examples: Path) -> "Figure":
    """A figure: example images, their gradients per layer before and after RIB, and the ratios.

    Args:
        records: of the toy experiment.
        examples: the file that the stage wrote.

    Raises:
        DataError: the file cannot be read.
    """
    from matplotlib.figure import Figure

    try:
        with np.load(examples, allow_pickle=False) as arrays:
            images, regions, maps = arrays["images"], arrays["regions"], arrays["maps"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot read {examples} ({error}); delete {examples.parent}, run again") from error
    height = INCHES * 2 * len(images)
    figure = Figure(figsize=(INCHES * (maps.shape[2] + 1), height + 3.2), layout="constrained")
    top, bottom = cast(Any, figure.subfigures(2, 1, height_ratios=(height, 3.2)))
    # Two rows an image: the image beside its gradients before RIB, its regions beside those after it.
    coloured = [coloured_regions(each[:2]) for each in regions]  # digit and mark
    shown = [each for pair in zip(images, coloured, strict=True) for each in pair]
    labels = [f"{phase} RIB" for phase in PHASES] * len(images)
    draw_gradients(top, shown, maps.reshape(-1, *maps.shape[2:]), labels)
    ratios: Lines = {}
    deviations: Lines = {}
    for one in records:
        panel = f"{one.source} RIB, seeds: {one.number}"
        ratios.setdefault(panel, {}).setdefault(one.label, []).append(one.value)
        deviations.setdefault(panel, {}).setdefault(one.label, []).append(one.deviation)
    draw_ratios(bottom, ratios, deviations)
    return figure
