"""Figures of scores: over thresholds, classes, groups of images, steps, and distance from CAM's peak."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ribseg.plot.style import COLOURS, line_style, png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = Sequence[float | None]


def threshold_figure(curves: Mapping[str, Mapping[str, Values]]) -> "Figure":
    """A figure of mIoU, precision and recall over the threshold, with a line per method.

    Args:
        curves: name -> "thresholds", "miou", "precision", "recall": T fractions each, as "curve" in
            `results.json`.
    """
    figure = new_figure(10.5, 3.4)
    for axis, score in zip(figure.subplots(1, 3), ("miou", "precision", "recall"), strict=True):
        for number, (name, curve) in enumerate(curves.items()):
            axis.plot(curve["thresholds"], percents(curve[score]), label=name, **line_style(number))
        _label(axis, "background score (threshold)", "mIoU" if score == "miou" else score)
        axis.set_xlim(0, 1)
    draw_legend(figure)
    return figure


def class_figure(columns: Mapping[str, Values], classes: Sequence[str]) -> "Figure":
    """A figure of the IoU of each class, with a bar per method.

    Args:
        columns: name -> one fraction for each of `classes`; None where a class does not occur.
        classes: names, background included.
    """
    height = 0.16 * len(classes) * (len(columns) + 1) + 1
    figure = new_figure(6.2, height)
    axis = figure.subplots()
    places, wide = np.arange(len(classes)), 0.8 / max(len(columns), 1)
    for number, (name, values) in enumerate(columns.items()):
        axis.barh(
            places + (number - (len(columns) - 1) / 2) * wide,
            np.nan_to_num(percents(values)), wide,
            label=name, color=COLOURS[number % len(COLOURS)],
        )  # fmt: skip
    axis.set_yticks(places, [str(name) for name in classes], parse_math=False)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("IoU, percent")
    axis.grid(axis="x", alpha=0.3)
    draw_legend(figure)
    return figure


def group_figure(groups: Mapping[str, Mapping[str, Values]], names: Mapping[str, Sequence[str]]) -> "Figure":
    """A figure of the mIoU in groups of images, with a panel per grouping and a line per method.

    Args:
        groups: grouping -> name of a method -> mIoU of each group, in [0, 1].
        names: grouping -> names of its groups.
    """
    figure = new_figure(3.3 * len(groups) + 0.3, 3.2)
    axes = np.atleast_1d(figure.subplots(1, max(len(groups), 1)))
    for axis, (grouping, columns) in zip(axes, groups.items(), strict=True):
        for number, (name, values) in enumerate(columns.items()):
            axis.plot(percents(values), marker="o", markersize=4, label=name, **line_style(number))
        axis.set_xticks(range(len(names[grouping])), names[grouping])
        axis.margins(x=0.15)
        _label(axis, grouping, "mIoU")
    draw_legend(figure)
    return figure


def coverage_figure(curves: Mapping[str, Values]) -> "Figure":
    """A figure of the share of the objects' pixels that is found, by distance from CAM's peak.

    Args:
        curves: name -> fractions, from the nearest to the farthest pixels.
    """
    figure = new_figure(6, 3.4)
    axis = figure.subplots()
    for number, (name, curve) in enumerate(curves.items()):
        places = (np.arange(len(curve)) + 0.5) * 100 / len(curve)
        axis.plot(places, percents(curve), marker="o", markersize=3, label=name, **line_style(number))
    _label(axis, "pixels of the object, from CAM's peak to the farthest, percent", "found")
    axis.set_xlim(0, 100)
    draw_legend(figure)
    return figure


def adaptation_figure(methods: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """A figure of logits and areas over the steps k, with a line per method.

    Args:
        methods: name -> "logits" and "areas", means over images for k = 0, 1, .., as in `results.json`.
    """
    figure = new_figure(8.4, 3.2)
    left, right = figure.subplots(1, 2)
    for number, (name, facts) in enumerate(methods.items()):
        style = line_style(number)
        left.plot(facts["logits"], marker="o", markersize=3, label=name, **style)
        right.plot(percents(facts["areas"]), marker="o", markersize=3, label=name, **style)
    _label(right, "step k", "area of the maps")
    left.set(xlabel="step k", ylabel="logit of the true classes (GAP)")
    left.grid(alpha=0.3)
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    draw_legend(figure)
    return figure


def percents(values: Values) -> np.ndarray:
    """Fractions in percent, NaN for None."""
    return np.array([np.nan if value is None else 100 * value for value in values], dtype=float)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches; Jupyter shows it as a picture, also where pyplot is not imported."""
    from matplotlib.figure import Figure

    class Shown(Figure):
        _repr_png_ = png_of

    return Shown(figsize=(width, height), layout="constrained")


def _label(axis: Any, below: str, beside: str) -> None:
    axis.set(xlabel=below, ylabel=f"{beside}, percent", ylim=(0, 100))
    axis.grid(alpha=0.3)


def draw_legend(figure: "Figure") -> None:
    """Draws one legend of the first panel's lines above all panels."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    look = {"ncols": max(1, min(len(names), 5)), "frameon": False, "fontsize": "small"}
    legend = figure.legend(handles, names, loc="outside upper center", **look)
    for text in legend.get_texts():
        text.set_parse_math(False)  # names may hold dollar signs
