"""The static grid of images, maps and masks, for logs and slides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ribseg.data.io.maps import LocalizationMaps, load_maps, map_path
from ribseg.data.io.masks import read_mask
from ribseg.functional.cam import argmax_labels
from ribseg.metrics.evaluation import full_size
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import map_sources
from ribseg.pipeline.report.segmenter_report import pictured_segmentations
from ribseg.pipeline.stages.evaluate import shown_threshold
from ribseg.plot import draw, draw_outline, overlay, png_of


def picture_grid(context: Context, results: dict[str, Any]) -> bytes:
    """The picture grid as PNG: per row an image, its maps, its masks, and the ground truth if there is one.

    It shows the last evaluated split, else training images. Maps are drawn over the image; the contour is the
    mask at the source's fixed (else best) threshold, if the maps were evaluated.
    """
    from matplotlib.figure import Figure

    folder = list(context.data.evals.values())[-1] if context.data.evals else context.data.train
    ids = evenly_spaced(folder.ids, context.cfg.report.examples)
    thresholds = pictured_maps(context, results, folder.split)
    labels = {name: source.label for name, source in map_sources(context.cfg).items()}
    masks = pictured_masks(results) | pictured_segmentations(results, folder.split)
    truth = all(folder.has_mask(image_id) for image_id in ids)
    width = 1 + len(thresholds) + len(masks) + truth
    figure = Figure(figsize=(2.4 * width, 2.4 * len(ids)), layout="constrained")
    for row, image_id in zip(figure.subplots(len(ids), width, squeeze=False), ids, strict=True):
        image, axes = folder.image(image_id), iter(row)
        names = [folder.classes[c] for c in np.flatnonzero(folder.labels[folder.index(image_id)])]
        draw(next(axes), image, f"{image_id}: {', '.join(names)}")
        for source, threshold in thresholds.items():
            maps = load_maps(map_path(context.artefacts[source].folder, image_id))
            _show_maps(next(axes), image, maps, threshold, labels[source])
        for title, place in masks.items():
            draw(next(axes), folder.palette[read_mask(place / f"{image_id}.png")], title)
        if truth:
            draw(next(axes), folder.palette[folder.mask(image_id)], "true mask")
    return png_of(figure)


def evenly_spaced(ids: Sequence[str], number: int) -> Sequence[str]:
    """At most `number` of the ids, from the first on, with the same distance.

    >>> evenly_spaced("abcdefg", 3)
    'ace'
    """
    return ids[:: max(1, len(ids) // number)][:number]


def pictured_maps(
    context: Context, results: dict[str, Any], split: str | None = None
) -> dict[str, float | None]:
    """Source of maps -> threshold of its contour in the grid of a split; None without an evaluation."""
    shown = [name for name, source in map_sources(context.cfg).items() if not source.control]
    finished = [name for name in shown if name in context.artefacts and context.is_ready(name)]
    thresholds: dict[str, float | None] = {}
    for source in finished:
        score = results.get("localization", {}).get(source, {}).get("split", {}).get(split)
        thresholds[source] = None if score is None else shown_threshold(score)
    return thresholds


def pictured_masks(results: dict[str, Any]) -> dict[str, Path]:
    """Title -> folder of the pseudo masks for the segmenter, if there are any."""
    if "pseudo_masks" not in results:
        return {}
    variant = results["pseudo_masks"]["variant"]
    return {f"pseudo mask ({variant})": Path(results["store"]["pseudo_masks"]) / variant}


def _show_maps(
    axis: Any, image: np.ndarray, maps: LocalizationMaps, threshold: float | None, title: str
) -> None:
    full = full_size(maps, (image.shape[0], image.shape[1]))
    strongest = full.amax(0).numpy() if len(full) else np.zeros(image.shape[:2])
    draw(axis, overlay(image, strongest), title)
    if threshold is not None:
        draw_outline(axis, argmax_labels(full, maps.classes, threshold).numpy() > 0)
