"""What the results have for loggers besides numbers: example images with masks, tables, curves, files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ribseg.data.base import BaseDataset
from ribseg.data.io.maps import LocalizationMaps
from ribseg.data.io.masks import read_mask
from ribseg.functional.cam import argmax_labels
from ribseg.metrics.evaluation import full_size
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import map_sources
from ribseg.pipeline.report.columns import read_maps
from ribseg.pipeline.report.cost_tables import memory_kinds
from ribseg.pipeline.report.pictures import evenly_spaced, pictured_masks
from ribseg.pipeline.report.segmenter_report import pictured_segmentations
from ribseg.pipeline.report.table_files import TABLES, write_csv
from ribseg.pipeline.stages.evaluate import map_change, shown_threshold

PICTURED = ("localization", "pseudo_masks", "segmenter")  # parts of the results that have images


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
    masks: dict[str, np.ndarray]
    thresholds: dict[str, float]


@dataclass(frozen=True)
class Table:
    """A table of names and numbers; None where there is no value."""

    columns: list[str]
    rows: list[list[str | float | None]]


@dataclass(frozen=True)
class Curves:
    """Curves over the thresholds: label of a source -> measure -> values, and label -> thresholds."""

    thresholds: dict[str, list[float]]
    values: dict[str, dict[str, list[float | None]]]

    def table(self) -> Table:
        """A row per source and threshold."""
        measures = list(dict.fromkeys(name for found in self.values.values() for name in found))
        rows: list[list[str | float | None]] = []
        for label, thresholds in self.thresholds.items():
            found = self.values[label]
            columns = [found.get(name, [None] * len(thresholds)) for name in measures]
            rows += [[label, *row] for row in zip(thresholds, *columns, strict=True)]
        return Table(["maps", "threshold", *measures], rows)


class CutMaps(NamedTuple):
    """Evaluated maps of a source: its label, what reads the maps of an image, and the split's threshold."""

    label: str
    read: Callable[[str], LocalizationMaps]
    threshold: float


def example_images(context: Context, results: dict[str, Any]) -> Iterator[tuple[BaseDataset, list[Example]]]:
    """Split -> examples, `report.examples` of each evaluated split and of the pseudo masks' split."""
    if not any(part in results for part in PICTURED):
        return
    folders = [*context.data.evals.values(), context.data.pseudo]
    for folder in {one.split: one for one in folders}.values():
        maps = cut_maps(context, results, folder.split)
        places = pictured_segmentations(results, folder.split) | pictured_masks(results)
        ids = evenly_spaced(folder.ids, context.cfg.report.examples)
        yield folder, [example(folder, image_id, maps, places) for image_id in ids]


def cut_maps(context: Context, results: Mapping[str, Any], split: str) -> list[CutMaps]:
    """The sources of maps that were evaluated on a split, without the controls."""
    found = []
    for name, source in map_sources(context.cfg).items():
        score = results.get("localization", {}).get(name, {}).get("split", {}).get(split)
        if score is not None and not source.control:
            read = partial(read_maps, context.artefacts[source.stage].folder, map_change(source))
            found.append(CutMaps(source.label, read, shown_threshold(score)))
    return found


def example(
    folder: BaseDataset, image_id: str, maps: Sequence[CutMaps], places: Mapping[str, Path]
) -> Example:
    """An image with its ground truth, the masks of its maps at their thresholds, and those in the store.

    Args:
        folder: of the image.
        image_id: of the image.
        maps: to cut.
        places: name -> folder of masks; images without a file there are left out.
    """
    image = folder.image(image_id)
    masks = {"ground truth": folder.mask(image_id)} if folder.has_mask(image_id) else {}
    for cut in maps:
        found = cut.read(image_id)
        full = full_size(found, (image.shape[0], image.shape[1]))
        masks[cut.label] = argmax_labels(full, found.classes, cut.threshold).numpy()
    paths = {name: place / f"{image_id}.png" for name, place in places.items()}
    masks |= {name: read_mask(path) for name, path in paths.items() if path.is_file()}
    thresholds = {cut.label: cut.threshold for cut in maps}
    return Example(image_id, image, {name: np.asarray(m, np.uint8) for name, m in masks.items()}, thresholds)


def class_tables(results: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Table]:
    """Name -> table of the IoU of background and each class: of maps by split, of masks, of segmenters."""
    columns: dict[str, dict[str, list[float | None]]] = {}
    for name, scores in results.get("localization", {}).items():
        for split, values in scores["split"].items():
            found = columns.setdefault(f"iou/localization/{split}", {})
            found[scores.get("label", name)] = values["iou_at_fixed"] or values["iou"]
    for variant, by_split in results.get("pseudo_masks", {}).get("variants", {}).items():
        for split, values in by_split.items():
            if isinstance(values, dict):
                columns.setdefault(f"iou/pseudo_masks/{split}", {})[variant] = values["iou"]
    for name, scores in results.get("segmenter", {}).items():
        for split, values in scores["split"].items():
            columns.setdefault(f"iou/segmenter/{split}", {})[scores.get("label", name)] = values["iou"]
    names = ("background", *classes)
    return {
        key: Table(["class", *found], [list(row) for row in zip(names, *found.values(), strict=True)])
        for key, found in columns.items()
    }


def threshold_curves(results: Mapping[str, Any]) -> dict[str, Curves]:
    """Split -> curves of all sources that have one."""
    curves: dict[str, Curves] = {}
    for name, scores in results.get("localization", {}).items():
        for split, values in scores["split"].items():
            if not values.get("curve"):
                continue
            measures = dict(values["curve"])
            label, here = scores.get("label", name), curves.setdefault(split, Curves({}, {}))
            here.thresholds[label] = measures.pop("thresholds")
            here.values[label] = measures
    return curves


def all_tables(context: Context, results: Mapping[str, Any]) -> dict[str, Table]:
    """Name -> table: the IoU per class, the curves over thresholds, and what the maps cost."""
    costs = {"costs": cost_numbers(results["methods"])} if results.get("methods") else {}
    if not any(part in results for part in PICTURED):
        return costs
    curves = {f"curves/{split}": found.table() for split, found in threshold_curves(results).items()}
    return class_tables(results, context.data.classes) | curves | costs


def cost_numbers(methods: Mapping[str, Any]) -> Table:
    """Method -> images, seconds an image, peak memory in GiB."""
    kinds = memory_kinds(methods)
    rows: list[list[str | float | None]] = [
        [
            f["label"],
            f["images"],
            f["seconds_per_image"],
            *(f.get("peak_gib", {}).get(kind) for kind in kinds),
        ]
        for f in methods.values()
    ]
    return Table(["maps", "images", "seconds_per_image", *(f"{kind}_gib" for kind in kinds)], rows)


def write_tables(context: Context, tables: Mapping[str, Table]) -> None:
    """Writes each table as `tables/<name>.csv` into the run's folder, whatever the loggers are."""
    for name, table in tables.items():
        write_csv(context.output / TABLES / f"{name.replace('/', '_')}.csv", table.columns, table.rows)


def written_files(context: Context) -> dict[str, Path]:
    """Name -> file in the run's folder: what this run has written, and its settings.

    By time, because `hydra.run.dir` may be a folder with files of others.
    """
    places = [*context.output.glob("*"), *context.output.glob(f"{TABLES}/*")]
    new = [path for path in places if path.is_file() and path.stat().st_mtime >= context.started]
    settings = context.output.glob(".hydra/*.yaml")
    return {str(path.relative_to(context.output)): path for path in sorted([*new, *settings])}
