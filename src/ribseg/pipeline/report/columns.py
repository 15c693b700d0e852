"""The columns of a run's gallery: its maps and masks, read from the store."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ribseg.data.base import BaseDataset
from ribseg.data.io.maps import LocalizationMaps, load_maps, map_path, read_records
from ribseg.data.io.masks import read_mask
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import map_sources
from ribseg.pipeline.report.gallery import MapSeries, MaskSeries
from ribseg.pipeline.report.pictures import pictured_masks
from ribseg.pipeline.stages.affinity import label_path
from ribseg.pipeline.stages.chains import segmenter_test_name
from ribseg.pipeline.stages.evaluate import image_counts, map_change, shown_threshold


def shown_splits(context: Context) -> list[BaseDataset]:
    """The splits of the gallery: those that are evaluated, else the training images."""
    return list(context.data.evals.values()) or [context.data.train]


def map_columns_of(context: Context, results: Mapping[str, Any]) -> list[MapSeries]:
    """The maps in the store, without controls, with their scores if they were evaluated."""
    counts = image_counts(context.artefacts.get("evaluate"), results)
    columns = []
    for name, source in map_sources(context.cfg).items():
        if source.control or source.stage not in context.artefacts or not context.is_ready(source.stage):
            continue
        folder = context.artefacts[source.stage].folder
        scores = results.get("localization", {}).get(name, {}).get("split", {})
        columns.append(
            MapSeries(
                name,
                source.label,
                partial(read_maps, folder, map_change(source)),
                {split: shown_threshold(values) for split, values in scores.items()},
                {split: found.iou(name) for split, found in counts.items() if name in found.rows},
                read_records(folder),
            )
        )
    return columns


def read_maps(
    folder: Path, change: Callable[[LocalizationMaps], LocalizationMaps] | None, image_id: str
) -> LocalizationMaps:
    """The maps of an image from the folder of a stage, as modified for scoring."""
    maps = load_maps(map_path(folder, image_id))
    return maps if change is None else change(maps)


def mask_columns_of(results: dict[str, Any]) -> list[MaskSeries]:
    """The masks in the store: confident labels, pseudo masks, segmentations."""
    columns = []
    if "affinity_labels" in results["store"]:
        labels = Path(results["store"]["affinity_labels"])
        read = partial(_file, partial(label_path, labels))
        columns.append(MaskSeries("confident", "confident labels", read, labels))
    for title, place in pictured_masks(results).items():
        columns.append(MaskSeries("pseudo_mask", title, partial(_file, partial(_png, place)), place))
    for source, values in results.get("segmenter", {}).items():
        place = Path(results["store"][segmenter_test_name(source)])
        label = f"segmenter on {values['label']}"
        columns.append(MaskSeries(f"segmenter_{source}", label, partial(_segmented, place), place))
    return columns


def true_mask_column(folders: Iterable[BaseDataset]) -> list[MaskSeries]:
    """The ground truth, as a list of one column; [] without any."""
    there = any(folder.has_mask(folder.ids[0]) for folder in folders if folder.ids)
    return [MaskSeries("ground_truth", "ground truth", _true_mask)] if there else []


def _png(place: Path, image_id: str) -> Path:
    return place / f"{image_id}.png"


def _file(path_of: Callable[[str], Path], folder: BaseDataset, image_id: str) -> np.ndarray | None:
    path = path_of(image_id)
    return read_mask(path) if path.is_file() else None


def _segmented(place: Path, folder: BaseDataset, image_id: str) -> np.ndarray | None:
    return _file(partial(_png, place / folder.split), folder, image_id)


def _true_mask(folder: BaseDataset, image_id: str) -> np.ndarray | None:
    return folder.mask(image_id) if folder.has_mask(image_id) else None
