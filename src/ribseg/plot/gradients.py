"""Figures of the information bottleneck: gradients per layer, and high gradient ratios."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ribseg.plot.scores import Values, new_figure
from ribseg.plot.style import COLOURS, line_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRADIENTS = "magma"  # uniform in lightness, unlike the maps' colours
INCHES = 1.35  # width of one image

Ratios = Mapping[str, Mapping[str, Values]]


def gradient_figure(images: Any, gradients: Any, labels: Sequence[str] = ()) -> "Figure":
    """A figure of images and their gradients, with a column per layer, each divided by its maximum.

    Args:
        images: (N, H, W) gray or (N, H, W, 3) in [0, 1]; array or tensor.
        gradients: (N, L, H, W), at least 0, as `ribseg.analysis.gradient_map` gives them for L layers.
        labels: of the N rows.
    """
    shown, layers = np.asarray(images), np.asarray(gradients)
    figure = new_figure(INCHES * (layers.shape[1] + 1), INCHES * len(layers) + 0.3)
    draw_gradients(figure, shown, layers, labels)
    return figure


def draw_gradients(figure: Any, images: Iterable[np.ndarray], gradients: Any, labels: Sequence[str]) -> None:
    """Draws what `gradient_figure` shows into a figure or a part of one; images may differ in their kind."""
    axes = figure.subplots(len(gradients), len(gradients[0]) + 1, squeeze=False)
    for row, image, layers in zip(axes, images, gradients, strict=True):
        row[0].imshow(image, cmap="gray", vmin=0, vmax=1)
        for axis, values in zip(row[1:], layers, strict=True):
            scale = max(float(np.nan_to_num(values).max()), 1e-30)
            axis.imshow(values / scale, cmap=GRADIENTS, vmin=0, vmax=1)
    for row, label in zip(axes, labels, strict=False):
        row[0].set_ylabel(label, fontsize=8)
    for layer, axis in enumerate(axes[0, 1:], start=1):
        axis.set_title(f"$G_{{{layer}}}$", fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])


def ratio_figure(ratios: Ratios, deviations: Ratios | None = None) -> "Figure":
    """A figure of high gradient ratios over the layers, with a panel per key and a line per region.

    Args:
        ratios: title of a panel, as "before RIB" -> region -> L ratios in [0, 1], as the means of
            `ribseg.analysis.high_gradient_ratio`; None for a missing one.
        deviations: the same of standard deviations, drawn as bars.
    """
    figure = new_figure(4.6 * len(ratios), 3.2)
    draw_ratios(figure, ratios, deviations)
    return figure


def draw_ratios(figure: Any, ratios: Ratios, deviations: Ratios | None = None) -> None:
    """Draws what `ratio_figure` shows into a figure or a part of one."""
    panels = figure.subplots(1, len(ratios), sharey=True, squeeze=False)[0]
    for axis, (title, regions) in zip(panels, ratios.items(), strict=True):
        for number, (name, values) in enumerate(regions.items()):
            means = np.array(values, dtype=float)
            bars = None if deviations is None else np.array(deviations[title][name], dtype=float)
            places = np.arange(1, len(means) + 1)
            axis.errorbar(
                places, means, bars, label=name, capsize=3, marker="o", markersize=3, **line_style(number)
            )
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("layer; the last is the class prediction", fontsize=8)
        axis.set_ylim(-0.03, 1.05)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    panels[0].set_ylabel("high gradient ratio", fontsize=8)


def coloured_regions(regions: Iterable[np.ndarray]) -> np.ndarray:
    """(H, W, 3) picture of (H, W) masks, each in the colour of its line in `ratio_figure`."""
    colours = [np.array([int(c[start : start + 2], 16) / 255 for start in (1, 3, 5)]) for c in COLOURS]
    return np.sum([part[..., None] * colours[number] for number, part in enumerate(regions)], axis=0)
