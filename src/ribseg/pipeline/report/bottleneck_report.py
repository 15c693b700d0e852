"""The figure of the toy experiment."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ribseg.analysis.summary import PHASES
from ribseg.errors import DataError
from ribseg.pipeline.report.records import Record
from ribseg.plot.gradients import INCHES, coloured_regions, draw_gradients, draw_ratios

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Panels = dict[str, dict[str, list[float | None]]]  # title -> region -> values by layer


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
    ratios: Panels = {}
    deviations: Panels = {}
    for one in records:
        panel = f"{one.source} RIB, seeds: {one.number}"
        ratios.setdefault(panel, {}).setdefault(one.label, []).append(one.value)
        deviations.setdefault(panel, {}).setdefault(one.label, []).append(one.deviation)
    draw_ratios(bottom, ratios, deviations)
    return figure
