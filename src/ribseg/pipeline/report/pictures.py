"""Maps and masks of images, from the store: columns of the gallery, the grid, examples for loggers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ribseg.data.base import BaseDataset
from ribseg.data.io.maps import LocalizationMaps, read_records
from ribseg.data.io.masks import read_mask
from ribseg.functional.cam import argmax_labels
from ribseg.metrics.evaluation import full_size
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.report.records import SCORED
from ribseg.pipeline.stages.affinity import label_path
from ribseg.pipeline.stages.chains import segmenter_test_name
from ribseg.pipeline.stages.evaluate import image_counts, maps_reader, shown_threshold
from ribseg.plot import draw, draw_outline, overlay, png_of


@dataclass(frozen=True)
class MapSeries:
    """The maps of a source, for each image.

    Attributes:
        name: different from those of the others.
        label: title of the column.
        read: image id -> maps, as modified for scoring.
        thresholds: split -> threshold of the outline; splits without one have no outline.
        scores: split -> (N,) IoU of its images; splits without masks are missing.
        records: image id -> "steps" and "stopped" of an adaptation.
    """

    name: str
    label: str
    read: Callable[[str], LocalizationMaps]
    thresholds: Mapping[str, float]
    scores: Mapping[str, np.ndarray]
    records: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class MaskSeries:
    """Masks, one for each image.

    Attributes:
        name: different from those of the others.
        label: title of the column.
        read: (split's data, image id) -> (H, W) uint8 mask; None for an image without one.
        folder: of the files, by which a comparison sees that runs share them; None for the ground truth.
        title: in small pictures; "" for masks that only the gallery shows.
    """

    name: str
    label: str
    read: Callable[[BaseDataset, str], np.ndarray | None]
    folder: Path | None = None
    title: str = ""


def map_series_of(session: Session, results: Mapping[str, Any]) -> list[MapSeries]:
    """The maps in the store, without controls, with their scores if they were evaluated."""
    counts = image_counts(session.artefacts.get("evaluate"), results)
    found = []
    for name, source in session.sources.items():
        stage = session.run.planned.get(source.stage)
        if source.control or stage is None or not session.run.is_ready(stage):
            continue
        folder = stage.artefact.folder
        scores = results.get("localization", {}).get(name, {}).get("split", {})
        found.append(
            MapSeries(
                name,
                source.label,
                maps_reader(folder, source),
                {split: shown_threshold(values) for split, values in scores.items()},
                {split: each.iou(name) for split, each in counts.items() if name in each.rows},
                read_records(folder),
            )
        )
    return found


def mask_series_of(results: Mapping[str, Any]) -> Iterator[MaskSeries]:
    """The masks in the store: confident labels, pseudo masks, segmentations."""
    store = {name: Path(place) for name, place in results["store"].items()}
    if "affinity_labels" in store:
        labels = store["affinity_labels"]
        yield MaskSeries("confident", "confident labels", lambda _, i: _read(label_path(labels, i)), labels)
    if "pseudo_masks" in results:
        variant = results["pseudo_masks"]["variant"]
        masks, title = store["pseudo_masks"] / variant, f"pseudo mask ({variant})"
        yield MaskSeries("pseudo_mask", title, lambda _, i: _read(masks / f"{i}.png"), masks, title)
    for source, values in results.get("segmenter", {}).items():
        place, title = store[segmenter_test_name(source)], f"segmenter ({source})"
        label = f"segmenter on {values['label']}"
        yield MaskSeries(f"segmenter_{source}", label, partial(_segmented, place), place, title)


def _read(path: Path) -> np.ndarray | None:
    return read_mask(path) if path.is_file() else None


def _segmented(place: Path, folder: BaseDataset, image_id: str) -> np.ndarray | None:
    return _read(place / folder.split / f"{image_id}.png")


def true_mask(folder: BaseDataset, image_id: str) -> np.ndarray | None:
    """The ground truth of an image; None without one."""
    return folder.mask(image_id) if folder.has_mask(image_id) else None


TRUE_MASK = MaskSeries("ground_truth", "ground truth", true_mask, title="true mask")


def picture_grid(
    session: Session, maps: Sequence[MapSeries], masks: Sequence[MaskSeries], number: int
) -> bytes | None:
    """The picture grid as PNG: per row an image, its maps, its masks, and the ground truth if there is one.

    It shows typical and then the worst images of the last evaluated split by the scores of `refine.maps`, or
    of the last maps; without scores evenly spaced images, without a split those of training. Maps are drawn
    over the image; the contour is the mask at the source's fixed (else best) threshold, if the maps were
    evaluated. None without maps.
    """
    from matplotlib.figure import Figure

    if not maps:
        return None
    folder = list(session.data.evals.values())[-1] if session.data.evals else session.data.train
    scored = {one.name: one.scores[folder.split] for one in maps if folder.split in one.scores}
    scores = scored.get(session.cfg.refine.maps, next(reversed(scored.values()), None))
    rows = typical_and_worst(folder.ids, scores, number)
    ids = list(rows)
    masks = [one for one in masks if one.title]
    if all(folder.has_mask(image_id) for image_id in ids):
        masks.append(TRUE_MASK)
    width = 1 + len(maps) + len(masks)
    figure = Figure(figsize=(2.4 * width, 2.1 * len(ids)), layout="constrained")
    for row, image_id in zip(figure.subplots(len(ids), width, squeeze=False), ids, strict=True):
        image, axes = folder.image(image_id), iter(row)
        names = [folder.classes[c] for c in np.flatnonzero(folder.labels[folder.index(image_id)])]
        draw(next(axes), image, f"{rows[image_id]}{image_id}: {', '.join(names)}")
        for series in maps:
            axis, found = next(axes), series.read(image_id)
            full = full_size(found, (image.shape[0], image.shape[1]))
            strongest = full.amax(0).numpy() if len(full) else np.zeros(image.shape[:2])
            draw(axis, overlay(image, strongest), series.label)
            if folder.split in series.thresholds:
                cut = argmax_labels(full, found.classes, series.thresholds[folder.split])
                draw_outline(axis, cut.numpy() > 0)
        for one in masks:
            axis, mask = next(axes), one.read(folder, image_id)
            axis.axis("off")
            if mask is not None:
                draw(axis, folder.palette[mask], one.title)
    return png_of(figure)


def typical_and_worst(ids: Sequence[str], scores: np.ndarray | None, number: int) -> dict[str, str]:
    """At most `number` ids -> what they are: those around the median score, then those with the lowest.

    Args:
        ids: N of them.
        scores: (N,) with NaN for images without a score; None for evenly spaced ids, which are nothing.
        number: of ids.

    >>> typical_and_worst("abcde", np.array([0.9, 0.1, 0.5, np.nan, 0.7]), 2)
    {'c': 'typical, ', 'b': 'worst, '}
    """
    known = np.empty(0, int) if scores is None else np.flatnonzero(~np.isnan(scores))
    if scores is None or len(known) < number:
        return dict.fromkeys(evenly_spaced(ids, number), "")
    order = known[np.argsort(scores[known], kind="stable")].tolist()
    lowest, middle = number // 2, number - number // 2
    start = max(lowest, (len(order) - middle) // 2)
    found = {ids[place]: "typical, " for place in order[start : start + middle]}
    return found | {ids[place]: "worst, " for place in order[:lowest]}


def evenly_spaced(ids: Sequence[str], number: int) -> Sequence[str]:
    """At most `number` of the ids, from the first on, with the same distance.

    >>> evenly_spaced("abcdefg", 3)
    'ace'
    """
    return ids[:: max(1, len(ids) // number)][:number]


@dataclass(frozen=True)
class Example:
    """An image with masks.

    Attributes:
        image_id: of the image.
        image: (H, W, 3) uint8.
        masks: name -> (H, W) uint8 class ids; 0 background, 255 ignore.
        thresholds: name of a mask -> the threshold at which it was cut from maps.
    """

    image_id: str
    image: np.ndarray
    masks: Mapping[str, np.ndarray]
    thresholds: Mapping[str, float]


def example_images(session: Session, results: dict[str, Any]) -> Iterator[tuple[BaseDataset, list[Example]]]:
    """Split -> examples, `report.examples` of each evaluated split and of the pseudo masks' split.

    Their masks are the ground truth, the maps that were evaluated, cut, and the masks in the store.
    """
    if not any(part in results for part in SCORED):
        return
    maps, masks = map_series_of(session, results), list(mask_series_of(results))
    folders = [*session.data.evals.values(), session.data.pseudo]
    for folder in {one.split: one for one in folders}.values():
        ids = evenly_spaced(folder.ids, session.cfg.report.examples)
        yield folder, [example(folder, image_id, maps, masks) for image_id in ids]


def example(
    folder: BaseDataset, image_id: str, maps: Sequence[MapSeries], masks: Sequence[MaskSeries]
) -> Example:
    """An image with its ground truth, the masks of its maps at their thresholds, and those in the store."""
    image = folder.image(image_id)
    found = {"ground truth": true_mask(folder, image_id)}
    thresholds = {one.label: one.thresholds[folder.split] for one in maps if folder.split in one.thresholds}
    for series in maps:
        if series.label in thresholds:
            each = series.read(image_id)
            full = full_size(each, (image.shape[0], image.shape[1]))
            found[series.label] = argmax_labels(full, each.classes, thresholds[series.label]).numpy()
    found |= {series.title: series.read(folder, image_id) for series in masks if series.title}
    kept = {name: np.asarray(mask, np.uint8) for name, mask in found.items() if mask is not None}
    return Example(image_id, image, kept, thresholds)
