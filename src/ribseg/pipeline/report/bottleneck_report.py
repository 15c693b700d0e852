"""The table and the figure of the toy experiment."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ribseg.analysis.summary import PHASES
from ribseg.data.demo.digits import REGIONS
from ribseg.errors import DataError
from ribseg.pipeline.report.table import TableData
from ribseg.plot.gradients import INCHES, coloured_regions, draw_gradients, draw_ratios

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"discriminative": "digit", "non_discriminative": "mark", "irrelevant": "rest"}
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
    height = INCHES * 2 * len(images)
    figure = Figure(figsize=(INCHES * (maps.shape[2] + 1), height + 3.2), layout="constrained")
    top, bottom = cast(Any, figure.subfigures(2, 1, height_ratios=(height, 3.2)))
    # Two rows an image: the image beside its gradients before RIB, its regions beside those after it.
    coloured = [coloured_regions(each[:2]) for each in regions]  # digit and mark
    shown = [each for pair in zip(images, coloured, strict=True) for each in pair]
    labels = [f"{phase} RIB" for phase in PHASES] * len(images)
    draw_gradients(top, shown, maps.reshape(-1, *maps.shape[2:]), labels)
    draw_ratios(bottom, *(_by_phase(values, result["seeds"]) for values in (result, result["std"])))
    return figure


def _by_phase(values: Mapping[str, Any], seeds: int) -> dict[str, dict[str, list[float | None]]]:
    return {
        f"{phase} RIB, seeds: {seeds}": {NAMES[region]: values[phase][region] for region in REGIONS}
        for phase in PHASES
    }
