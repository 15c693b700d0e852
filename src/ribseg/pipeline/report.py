"""What a run leaves for people: tables on the terminal, a picture grid, and a page."""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.table import Table

from ribseg.callbacks import map_path
from ribseg.data.files import atomic_write
from ribseg.data.maps import load_maps
from ribseg.data.masks import read_mask
from ribseg.evaluation import full_size
from ribseg.functional.cam import argmax_labels
from ribseg.pipeline.bottleneck import EXAMPLES
from ribseg.pipeline.bottleneck_report import (
    RATIO_NOTE,
    TARGET_HEADER,
    bottleneck_figure,
    bottleneck_tables,
    gradient_header,
    gradient_rows,
    network_line,
    target_rows,
)
from ribseg.pipeline.context import Context
from ribseg.pipeline.segmenter_report import (
    HEADER,
    pictured_segmentations,
    segmenter_columns,
    segmenter_rows,
    segmenter_table,
)
from ribseg.pipeline.store import environment
from ribseg.types import LocalizationMaps

NAMES = {
    "cam": "CAM",
    "rib": "RIB",
    "imported": "imported",
    "random_walk": "+ random walk",
    "wrong_class": "wrong class *",
    "feature_norm": "feature norm *",
    "centre_prior": "centre prior *",
    "whole_image": "whole image *",
}
MAP_HEADER = ("best (at)", "at fixed", "interval", "gain over CAM", "no masks (at)", "precision", "recall")
# Rows that are left out where there is nothing, because not every run wants them.
OPTIONAL = ("imported", "random_walk")
MASK_NAMES = {
    "random_walk": "random walk",
    "saliency": "saliency",
    "pixel_adaptive": "pixel-adaptive",
    "crf": "CRF",
}


def mask_name(variant: str) -> str:
    """A variant of pseudo masks for people.

    >>> mask_name("random_walk_crf"), mask_name("none")
    ('+ random walk + CRF', 'maps, cut')
    """
    parts = [name for part, name in MASK_NAMES.items() if part in variant]
    return " ".join(f"+ {name}" for name in parts) or "maps, cut"


def rows(localization: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of localization maps; mIoU in percent."""
    splits = list(next(iter(localization.values()))["split"])
    header = ["maps"]
    for split in splits:
        header += [f"{split}: {MAP_HEADER[0]}", *MAP_HEADER[1:]]
    cells = []
    for source, name in NAMES.items():
        values = localization.get(source)
        if values is None and source in OPTIONAL:
            continue
        if values is None:
            cells.append([name, "absent", *[""] * (len(header) - 2)])
            continue
        cells.append([name])
        for split in splits:
            cells[-1] += _cells(values["split"][split])
    return header, cells


def _cells(score: dict[str, Any]) -> list[str]:
    interval = gain = "-"
    if score["miou_at_fixed"] is not None:
        low, high = score["interval_at_fixed"]
        interval = f"{100 * low:.1f}-{100 * high:.1f}"
    if "gain_over_cam" in score:
        below, above = score["gain_interval"]
        gain = f"{100 * score['gain_over_cam']:+.1f} [{100 * below:+.1f}, {100 * above:+.1f}]"
    return [
        _at(score["best_miou"], score["best_threshold"]),
        _at(score["miou_at_fixed"], score["fixed_threshold"]),
        interval,
        gain,
        _at(score["miou_unsupervised"], score["unsupervised_threshold"]),
        f"{100 * score['precision']:.0f}",
        f"{100 * score['recall']:.0f}",
    ]


def _at(miou: float | None, threshold: float | None) -> str:
    return "-" if miou is None or threshold is None else f"{100 * miou:.1f} ({threshold:.2f})"


def print_tables(context: Context, results: dict[str, Any]) -> None:
    """Prints what was measured; one table per split, which fits a terminal."""
    if "localization" in results:
        for split in next(iter(results["localization"].values()))["split"]:
            context.console.print(_split_table(results["localization"], split))
        context.console.print(NOTE, style="dim")
    if "pseudo_masks" in results:
        context.console.print(mask_table(results["pseudo_masks"]))
    if "segmenter" in results:
        context.console.print(segmenter_table(results["segmenter"]))
    if "adaptation" in results:
        context.console.print(adaptation_line(results["adaptation"]))
    if "skipped" in results:
        context.console.print(skipped_line(results["skipped"]), style="yellow")
    if "bottleneck" in results:
        for table in bottleneck_tables(results["bottleneck"]):
            context.console.print(table)
        context.console.print(network_line(results["bottleneck"]))


NOTE = (
    "mIoU in percent over all classes and background, with 95 % bootstrap intervals over images. At fixed: "
    "at the threshold that is best on the other split, each row its own; no masks: at the one that Otsu's "
    "criterion gives without ground truth. * Controls: RIB towards an absent class, its maps taken for the "
    "true class; norm of the features, a centre prior and the whole image, each with CAM's classes. What a "
    "control gains as well is shape, not class."
)


def _split_table(localization: dict[str, Any], split: str) -> Table:
    one = {source: {"split": {split: values["split"][split]}} for source, values in localization.items()}
    header, cells = rows(one)
    images = next(iter(one.values()))["split"][split]["images"]
    table = Table(title=f"Localization maps on {split}, {images} images", title_justify="left")
    for column in header:
        table.add_column(column.removeprefix(f"{split}: "), justify="left" if column == "maps" else "right")
    for row in cells:
        table.add_row(*row, style="bold" if row[0] == "RIB" else None)
    return table


MASK_HEADER = ("variant", "split", "threshold", "mIoU", "precision", "recall", "false pos.", "false neg.")


def mask_rows(pseudo_masks: dict[str, Any]) -> list[list[str]]:
    """Cells of the table of pseudo masks, in percent."""
    keys = ("miou", "precision", "recall", "false_positive", "false_negative")
    return [
        [
            mask_name(variant),
            split,
            f"{scores['threshold']:.2f}",
            *(f"{100 * values[key]:.1f}" for key in keys),
        ]
        for variant, scores in pseudo_masks["variants"].items()
        for split, values in scores.items()
        if isinstance(values, dict)
    ]


def mask_table(pseudo_masks: dict[str, Any]) -> Table:
    """A row per variant and split."""
    table = Table(title="Pseudo masks, percent", title_justify="left")
    for column in MASK_HEADER:
        table.add_column(column, justify="left" if column in MASK_HEADER[:2] else "right")
    for row in mask_rows(pseudo_masks):
        table.add_row(*row)
    return table


def skipped_line(skipped: dict[str, dict[str, str]]) -> str:
    """One line on the images that are in no number."""
    parts = ", ".join(f"{len(broken)} of {split}" for split, broken in skipped.items() if broken)
    return (
        f"Skipped because they are broken, and in no number: {parts} (ids and reasons are in results.json)."
    )


def adaptation_line(adaptation: dict[str, Any]) -> str:
    """One line on how RIB's adaptation went."""
    stopped = ", ".join(f"{rule.replace('_', ' ')} {count}" for rule, count in adaptation["stopped"].items())
    return (
        f"RIB adapted {adaptation['images'] - adaptation['without_class']} of {adaptation['images']} images, "
        f"{adaptation['steps_mean']:.1f} steps and {adaptation['seconds_per_image']:.2f} s each; "
        f"stopped early: {stopped}."
    )


PICTURED = ("cam", "rib", "imported", "random_walk")


def picture_grid(context: Context, results: dict[str, Any]) -> bytes:
    """A PNG: per row an image, its maps, its pseudo mask and its true mask; of the last evaluated split.

    Maps are drawn over the image, the contour is the mask at the source's fixed (else best) threshold.
    """
    from matplotlib.figure import Figure

    split, folder = list(context.data.evals.items())[-1]
    scores = {name: results["localization"][name] for name in PICTURED if name in results["localization"]}
    step = max(1, len(folder.ids) // context.cfg.report.examples)
    ids = folder.ids[::step][: context.cfg.report.examples]
    masks = pictured_masks(results) | pictured_segmentations(results, split)
    width = len(scores) + len(masks) + 2
    figure = Figure(figsize=(2.4 * width, 2.4 * len(ids)), layout="constrained")
    for row, image_id in zip(figure.subplots(len(ids), width, squeeze=False), ids, strict=True):
        image, axes = folder.image(image_id), iter(row)
        names = [folder.classes[c] for c in np.flatnonzero(folder.labels[folder.index(image_id)])]
        _show(next(axes), image, f"{image_id}: {', '.join(names)}")
        for source, score in scores.items():
            maps = load_maps(map_path(context.artefacts[source].folder, image_id))
            _show_maps(next(axes), image, maps, score["split"][split], NAMES[source])
        for title, place in masks.items():
            _show(next(axes), folder.palette[read_mask(place / f"{image_id}.png")], title)
        _show(next(axes), folder.palette[folder.mask(image_id)], "true mask")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def pictured_masks(results: dict[str, Any]) -> dict[str, Path]:
    """Title and folder of the pseudo masks to train on, where there are any."""
    if "pseudo_masks" not in results:
        return {}
    variant = results["pseudo_masks"]["variant"]
    return {f"pseudo mask ({variant})": Path(results["store"]["pseudo_masks"]) / variant}


def _show_maps(
    axis: Any, image: np.ndarray, maps: LocalizationMaps, score: dict[str, Any], title: str
) -> None:
    fixed = score["fixed_threshold"]
    full = full_size(maps, (image.shape[0], image.shape[1]))
    _show(axis, overlay(image, full), title)
    labels = argmax_labels(full, maps.classes, score["best_threshold"] if fixed is None else fixed).numpy()
    if min(labels.shape) > 1:  # no contour lies in a line of pixels
        axis.contour(labels > 0, levels=[0.5], colors="white", linewidths=1)


def overlay(image: np.ndarray, maps: torch.Tensor) -> np.ndarray:
    """(H, W, 3) uint8 image under the strongest of its (K, H, W) maps, as float in [0, 1]."""
    from matplotlib import colormaps

    strongest = maps.amax(0).numpy() if len(maps) else np.zeros(image.shape[:2])
    heat = colormaps["jet"](strongest)[..., :3]
    return 0.5 * image / 255 + 0.5 * heat


def _show(axis: Any, image: np.ndarray, title: str) -> None:
    axis.imshow(image)
    axis.set_title(title, fontsize=8, parse_math=False)  # an id may hold dollar signs
    axis.axis("off")


def write_report(context: Context, results: dict[str, Any]) -> Path:
    """Writes `report.html`, complete in itself, and `grid.png` beside it."""
    parts = ["<h1>ribseg: " + html.escape(context.cfg.name) + "</h1>"]
    if "localization" in results:
        header, cells = rows(results["localization"])
        parts += ["<h2>Localization maps</h2>", _html_table(header, cells), f"<p>{html.escape(NOTE)}</p>"]
        parts += [
            "<h2>IoU per class, at the best threshold</h2>",
            _per_class(context, map_columns(results["localization"])),
        ]
        grid = picture_grid(context, results)
        atomic_write(context.output / "grid.png", grid)
        parts.append(_html_image(grid))
    if "pseudo_masks" in results:
        parts += ["<h2>Pseudo masks</h2>", _html_table(list(MASK_HEADER), mask_rows(results["pseudo_masks"]))]
        parts.append(_per_class(context, mask_columns(results["pseudo_masks"])))
    if "segmenter" in results:
        parts += ["<h2>Segmenter</h2>", _html_table(list(HEADER), segmenter_rows(results["segmenter"]))]
        parts.append(_per_class(context, segmenter_columns(results["segmenter"])))
    if "adaptation" in results:
        parts.append(f"<p>{html.escape(adaptation_line(results['adaptation']))}</p>")
    if "skipped" in results:
        parts.append(f"<p><b>{html.escape(skipped_line(results['skipped']))}</b></p>")
    if "bottleneck" in results:
        parts += _bottleneck_parts(context, results["bottleneck"])
    for title, text in (
        ("Environment", json.dumps(environment(), indent=1)),
        ("Configuration", OmegaConf.to_yaml(context.cfg, resolve=True)),
    ):
        parts.append(f"<h2>{title}</h2><pre>{html.escape(text)}</pre>")
    path = context.output / "report.html"
    atomic_write(path, (PAGE + "\n".join(parts)).encode())
    return path


PAGE = """<!doctype html><meta charset="utf-8"><title>ribseg</title>
<style>body{font:14px sans-serif;margin:2em auto;max-width:70em}table{border-collapse:collapse}
td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right}td:first-child{text-align:left}</style>
"""


def _bottleneck_parts(context: Context, result: dict[str, Any]) -> list[str]:
    """The section of the toy experiment; its figure is written beside the report, too."""
    figure = bottleneck_figure(result, context.artefacts["bottleneck"].folder / EXAMPLES)
    atomic_write(context.output / "bottleneck.png", figure)
    return [
        "<h2>Information bottleneck</h2>",
        _html_image(figure),
        _html_table(gradient_header(result), gradient_rows(result)),
        f"<p>{html.escape(RATIO_NOTE)}</p>",
        _html_table(TARGET_HEADER, target_rows(result)),
        f"<p>{html.escape(network_line(result))}</p>",
    ]


def _html_image(png: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" style="max-width:100%">'


Columns = dict[str, list[float | None]]  # title -> IoU of background and each class


def map_columns(localization: dict[str, Any]) -> Columns:
    """The IoU of each source of maps on the first split, at its best threshold."""
    found = {NAMES[source]: localization[source]["split"] for source in NAMES if source in localization}
    return {f"{name}, {split}": by[split]["iou"] for name, by in found.items() for split in list(by)[:1]}


def mask_columns(pseudo_masks: dict[str, Any]) -> Columns:
    """The IoU of each variant of pseudo masks on each split."""
    return {
        f"{mask_name(variant)}, {split}": values["iou"]
        for variant, scores in pseudo_masks["variants"].items()
        for split, values in scores.items()
        if isinstance(values, dict)
    }


def _per_class(context: Context, columns: Columns) -> str:
    if not columns:
        return ""  # there are no masks to score with
    names = ("background", *context.data.classes)
    cells = [
        [name, *("-" if value is None else f"{100 * value:.1f}" for value in values)]
        for name, *values in zip(names, *columns.values(), strict=True)
    ]
    return _html_table(["IoU", *columns], cells)


def _html_table(header: list[str], cells: list[list[str]]) -> str:
    def line(tag: str, values: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

    return "<table>" + "".join([line("th", header), *(line("td", row) for row in cells)]) + "</table>"
