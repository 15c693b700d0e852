"""Figures of localization maps over their images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ribseg.data.io.images import as_image
from ribseg.data.io.masks import voc_palette
from ribseg.errors import DataError
from ribseg.functional.cam import argmax_labels
from ribseg.plot.scores import new_figure
from ribseg.plot.style import MAPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPACITY = 0.6  # of a map over its image
INCHES = 3.0  # width of one image


class Maps(Protocol):
    """What is drawn of an image's localization maps, see `ribseg.LocalizationMaps`.

    Attributes:
        classes: (K,) int64, class indices.
        full: (K, H, W) float in [0, 1]; None if not kept.
        names: of the K classes, if known.
    """

    classes: torch.Tensor
    full: torch.Tensor | None
    names: tuple[str, ...]


def overlay(image: np.ndarray, strength: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
    """Blends a map over an image; returns (H, W, 3) float in [0, 1].

    Args:
        image: (H, W, 3) uint8.
        strength: (H, W) map in [0, 1].
        opacity: of the map, in [0, 1].
    """
    from matplotlib import colormaps

    colours = colormaps[MAPS](strength)[..., :3]
    return (1 - opacity) * image / 255 + opacity * colours


def overlay_mask(
    image: np.ndarray, mask: np.ndarray, palette: np.ndarray | None = None, opacity: float = OPACITY
) -> np.ndarray:
    """Blends the classes of a mask over an image, which background leaves as it is; (H, W, 3) in [0, 1].

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) uint8 class ids; 0 background, 255 ignore.
        palette: (256, 3) uint8 colours; None for VOC's.
        opacity: of the mask, in [0, 1].
    """
    share = opacity * (mask > 0)[..., None]
    colours = (voc_palette() if palette is None else palette)[mask]
    return (1 - share) * image / 255 + share * colours / 255


def draw(axis: Any, image: np.ndarray, title: str) -> None:
    """Draws an image with a title."""
    axis.imshow(image)
    axis.set_title(title, fontsize=8, parse_math=False)  # names may hold dollar signs
    axis.axis("off")


def draw_outline(axis: Any, region: np.ndarray) -> None:
    """Draws the outline of an (H, W) boolean region in white."""
    if min(region.shape) > 1:  # matplotlib needs at least 2x2 pixels
        axis.contour(region, levels=[0.5], colors="white", linewidths=1)


def localization_figure(
    image: Any, maps: Maps, threshold: float | None = None, mask: np.ndarray | None = None
) -> "Figure":
    """A figure of the image, next to overlays of each map, and of a mask.

    Args:
        image: of any type accepted by `as_image`.
        maps: of the image, with full size.
        threshold: draw the outline of each class in the mask at this threshold; None: no outlines.
        mask: (H, W) uint8 labels, drawn last; None for none.

    Raises:
        DataError: the maps are of an image of another size, or have no full size.
    """
    pixels = as_image(image)
    names = _names(maps)
    figure, axes = _grid(1, 1 + len(names) + (mask is not None), pixels)
    draw(axes[0, 0], pixels, "image")
    _draw_maps(axes[0, 1 : 1 + len(names)], pixels, maps, names, threshold)
    if mask is not None:
        draw(axes[0, -1], overlay_mask(pixels, mask), "refined mask")
    return figure


def steps_figure(
    image: Any,
    series: Sequence[Maps],
    threshold: float | None = None,
    steps: Sequence[int] | None = None,
    mask: np.ndarray | None = None,
) -> "Figure":
    """A figure of the maps over the steps of a method, the first of them CAM, and of a mask.

    It has one row per class and one column per step.

    Args:
        image: of any type accepted by `as_image`.
        series: the maps after each step, from a method's `trace`.
        threshold: see `localization_figure`.
        steps: the number k of each of the maps; None for 0, 1, ..
        mask: (H, W) uint8 labels, drawn last; None for none.

    Raises:
        DataError: see `localization_figure`; or no steps.
    """
    pixels = as_image(image)
    if not series or not len(series[0].classes):
        raise DataError("expected the maps of at least one step and one class")
    names = _names(series[0])
    figure, axes = _grid(len(names), len(series) + (mask is not None), pixels)
    numbers = range(len(series)) if steps is None else steps
    for column, (k, maps) in enumerate(zip(numbers, series, strict=True)):
        titles = [f"{name}, k = {k}" if k else f"{name}, CAM" for name in names]
        _draw_maps(axes[:, column], pixels, maps, titles, threshold)
    if mask is not None:
        draw(axes[0, -1], overlay_mask(pixels, mask), "refined mask")
        for axis in axes[1:, -1]:
            axis.axis("off")
    return figure


def _draw_maps(
    axes: np.ndarray, pixels: np.ndarray, maps: Maps, titles: Sequence[str], threshold: float | None
) -> None:
    """Draws each map over the image, on an axis of its own."""
    full = _full(maps, pixels)
    winners = None if threshold is None else argmax_labels(full, torch.arange(len(full)), threshold)
    for number, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        draw(axis, overlay(pixels, full[number].numpy()), title)
        if winners is not None:
            draw_outline(axis, (winners == number + 1).numpy())


def _full(maps: Maps, pixels: np.ndarray) -> torch.Tensor:
    if maps.full is None:
        raise DataError("these maps have no full size, which figures need; use maps.full=true")
    if tuple(maps.full.shape[1:]) != pixels.shape[:2]:
        raise DataError(f"maps of {tuple(maps.full.shape[1:])} are not of an image of {pixels.shape[:2]}")
    return maps.full.cpu().float()


def _names(maps: Maps) -> Sequence[str]:
    return maps.names or [f"class {number}" for number in maps.classes.tolist()]


def _grid(rows: int, columns: int, pixels: np.ndarray) -> "tuple[Figure, np.ndarray]":
    """A figure with axes (rows, columns), each `INCHES` wide, with the image's aspect ratio."""
    height = INCHES * pixels.shape[0] / pixels.shape[1]
    figure = new_figure(INCHES * columns, rows * (min(height, 3 * INCHES) + 0.3))
    return figure, figure.subplots(rows, columns, squeeze=False)
