"""What pictures show of an image: its maps and masks, read from the store."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ribseg.data.base import BaseDataset
from ribseg.data.io.maps import LocalizationMaps, load_maps, map_path, read_records
from ribseg.data.io.masks import read_mask
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import MapSource, map_sources
from ribseg.pipeline.stages.affinity import label_path
from ribseg.pipeline.stages.chains import segmenter_test_name
from ribseg.pipeline.stages.evaluate import image_counts, map_change, shown_threshold


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
    thresholds: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


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


def map_series_of(context: Context, results: Mapping[str, Any]) -> list[MapSeries]:
    """The maps in the store, without controls, with their scores if they were evaluated."""
    counts = image_counts(context.artefacts.get("evaluate"), results)
    found = []
    for name, source in map_sources(context.cfg).items():
        if source.control or source.stage not in context.artefacts or not context.is_ready(source.stage):
            continue
        folder = context.artefacts[source.stage].folder
        scores = results.get("localization", {}).get(name, {}).get("split", {})
        found.append(
            MapSeries(
                name,
                source.label,
                partial(read_maps, folder, source),
                {split: shown_threshold(values) for split, values in scores.items()},
                {split: each.iou(name) for split, each in counts.items() if name in each.rows},
                read_records(folder),
            )
        )
    return found


def read_maps(folder: Path, source: MapSource, image_id: str) -> LocalizationMaps:
    """The maps of an image from the folder of a stage, as modified for scoring."""
    maps, change = load_maps(map_path(folder, image_id)), map_change(source)
    return maps if change is None else change(maps)


def mask_series_of(results: Mapping[str, Any]) -> Iterator[MaskSeries]:
    """The masks in the store: confident labels, pseudo masks, segmentations."""
    store = {name: Path(place) for name, place in results["store"].items()}
    if "affinity_labels" in store:
        place = store["affinity_labels"]
        yield MaskSeries("confident", "confident labels", partial(_read, partial(label_path, place)), place)
    if "pseudo_masks" in results:
        variant = results["pseudo_masks"]["variant"]
        place, title = store["pseudo_masks"] / variant, f"pseudo mask ({variant})"
        yield MaskSeries("pseudo_mask", title, partial(_read, partial(_png, place)), place, title)
    for source, values in results.get("segmenter", {}).items():
        place, title = store[segmenter_test_name(source)], f"segmenter ({source})"
        read, label = partial(_segmented, place), f"segmenter on {values['label']}"
        yield MaskSeries(f"segmenter_{source}", label, read, place, title)


def true_masks(folders: Iterable[BaseDataset]) -> Iterator[MaskSeries]:
    """The ground truth; nothing without any."""
    if any(folder.has_mask(folder.ids[0]) for folder in folders if folder.ids):
        yield MaskSeries("ground_truth", "ground truth", true_mask)


def true_mask(folder: BaseDataset, image_id: str) -> np.ndarray | None:
    """The ground truth of an image; None without one."""
    return folder.mask(image_id) if folder.has_mask(image_id) else None


def _png(place: Path, image_id: str) -> Path:
    return place / f"{image_id}.png"


def _read(path_of: Callable[[str], Path], folder: BaseDataset, image_id: str) -> np.ndarray | None:
    path = path_of(image_id)
    return read_mask(path) if path.is_file() else None


def _segmented(place: Path, folder: BaseDataset, image_id: str) -> np.ndarray | None:
    return _read(partial(_png, place / folder.split), folder, image_id)
