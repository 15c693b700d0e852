"""The table and the figure of the toy experiment."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ribseg.analysis.summary import PHASES
from ribseg.data.demo.digits import REGIONS
from ribseg.errors import DataError
from ribseg.pipeline.report.table import TableData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"discriminative": "digit", "non_discriminative": "mark", "irrelevant": "rest"}
COLOURS = {"discriminative": "#1f77b4", "non_discriminative": "#d62728", "irrelevant": "#7f7f7f"}
RATIO_NOTE = (
    "High gradient ratio: the share of a region's pixels whose input gradient, smoothed and divided by the "
    "image's maximum, exceeds the threshold (bottleneck.gradient). G1 to the last but one are the "
    "convolutions, the last is the class prediction. Mean and standard deviation over seeds. Without "
    "smoothing the decay over the layers is more gradual; with normalise=percentile the collapse is weaker."
)


def ratio_table(result: Mapping[str, Any]) -> TableData:
    """The table of high gradient ratios before and after RIB: mean and deviation over seeds, per layer."""
    layers = len(result["before"][REGIONS[0]])
    rows = [
        [phase, NAMES[region], *map(_ratio, result[phase][region], result["std"][phase][region])]
        for phase in PHASES
        for region in REGIONS
    ]
    title = f"High gradient ratio, mean ± std, seeds: {result['seeds']}"
    columns = ["RIB", "region", *(f"G{number + 1}" for number in range(layers))]
    return TableData(title, columns, rows, RATIO_NOTE, text=("region",))


def _ratio(mean: float | None, deviation: float | None) -> str:
    return "-" if mean is None else f"{mean:.2f} ± {deviation:.2f}"


def network_line(result: Mapping[str, Any]) -> str:
    """A line about the networks and the adaptation."""
    records = result["by_seed"]
    accuracy = "-" if result["accuracy"] is None else f"{100 * result['accuracy']:.1f} %"
    steps = np.mean([record["steps_mean"] for record in records])
    broken = sum(record["stopped"].get("not_finite", 0) for record in records)
    return (
        f"Networks: {result['seeds']}, images: {sum(record['images'] for record in records)}; accuracy "
        f"{accuracy}, diverged {result['diverged']}; last activation saturated for "
        f"{100 * result['saturation']:.0f} % of the images; RIB took {steps:.1f} steps, not finite {broken}."
    )


def bottleneck_figure(result: Mapping[str, Any], examples: Path) -> "Figure":
    """A figure: example images, their gradients per layer before and after RIB, and the ratios.

    Args:
        result: "bottleneck" of `results.json`.
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
    height = 1.35 * 2 * len(images)
    figure = Figure(figsize=(1.35 * (maps.shape[2] + 1), height + 3.2), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(height, 3.2))
    top, bottom = parts
    _draw_examples(top, images, regions, maps)
    _draw_curves(bottom, result)
    return figure


def _draw_examples(figure: Any, images: np.ndarray, regions: np.ndarray, maps: np.ndarray) -> None:
    axes = figure.subplots(2 * len(images), maps.shape[2] + 1, squeeze=False)
    for index, (image, region, phases) in enumerate(zip(images, regions, maps, strict=True)):
        coloured = sum(
            part[..., None] * _rgb(COLOURS[name]) for part, name in zip(region[:2], REGIONS, strict=False)
        )
        for phase, (first, layers) in enumerate(zip((image, coloured), phases, strict=True)):
            _draw_layers(axes[2 * index + phase], first, layers, f"{PHASES[phase]} RIB")
    for layer, axis in enumerate(axes[0, 1:]):
        axis.set_title(f"$G_{layer + 1}$", fontsize=9)


def _draw_layers(row: Any, image: np.ndarray, layers: np.ndarray, label: str) -> None:
    row[0].imshow(image, cmap="gray", vmin=0, vmax=1)
    row[0].set_ylabel(label, fontsize=8)
    for axis, values in zip(row[1:], layers, strict=True):
        scale = max(float(np.nan_to_num(values).max()), 1e-30)
        axis.imshow(values / scale, cmap="magma", vmin=0, vmax=1)
    for axis in row:
        axis.set_xticks([])
        axis.set_yticks([])


def _draw_curves(figure: Any, result: Mapping[str, Any]) -> None:
    for axis, phase in zip(figure.subplots(1, 2, sharey=True), PHASES, strict=True):
        for region in REGIONS:
            means = np.array(result[phase][region], dtype=float)
            deviations = np.array(result["std"][phase][region], dtype=float)
            axis.errorbar(
                np.arange(1, len(means) + 1), means, deviations,
                color=COLOURS[region], label=NAMES[region], capsize=3, marker="o", markersize=3,
            )  # fmt: skip
        axis.set_title(f"{phase} RIB, seeds: {result['seeds']}", fontsize=9)
        axis.set_xlabel("layer; the last is the class prediction", fontsize=8)
        axis.set_ylim(-0.03, 1.05)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.axes[0].set_ylabel("high gradient ratio", fontsize=8)


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
