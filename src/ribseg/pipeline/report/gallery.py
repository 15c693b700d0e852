"""The gallery of a report: images with their maps and masks, as data for the page's script.

All images are listed. Some of them have all pictures: the largest losses and gains over the baseline, the
lowest scores, and evenly spaced ones. Others have a thumbnail, as far as the size of the page permits.
"""

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ribseg.data.base import BaseDataset
from ribseg.data.io.maps import LocalizationMaps
from ribseg.functional.cam import resize, size_within
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.report.pictures import TRUE_MASK, MapSeries, MaskSeries
from ribseg.workers import ordered_map

PICTURES_SHARE = 0.75  # of the page for images with all pictures; the rest is for thumbnails and tables
RESERVE = 2.5e6  # bytes for tables, figures and scripts
SIDE = 288  # pixels of the longer side of an image in the gallery
THUMBNAIL = 72
MAP_SIDE = 96  # of a map without steps; maps are smooth, and the page enlarges them bilinearly


class Listed(NamedTuple):
    """An image of the gallery: its data, its place in the split, and its id."""

    folder: BaseDataset
    place: int
    image_id: str


@dataclass(frozen=True)
class Gallery:
    """The gallery's data; `data`, `pictures` and `thumbnails` are what the page's script reads.

    Attributes:
        data: JSON values: "classes", "colours", "columns", "rows", "baseline".
        pictures: JSON text of each image that has all pictures, in the order of their numbers in the rows.
        thumbnails: data URI of each image that has a thumbnail, likewise.
        note: which images have pictures, and why not all.
    """

    data: Mapping[str, Any]
    pictures: Sequence[str]
    thumbnails: Sequence[str]
    note: str


def make_gallery(
    session: Session,
    folders: Sequence[BaseDataset],
    maps: Sequence[MapSeries],
    masks: Sequence[MaskSeries],
    baseline: str | None,
) -> Gallery | None:
    """The gallery of some splits; None with report.images=0.

    Args:
        session: of the run.
        folders: the splits, at least one.
        maps: columns with maps.
        masks: columns with masks; the ground truth comes last.
        baseline: name of the maps that others are compared with; None for no comparison.
    """
    images, size = session.cfg.report.images, 1e6 * session.cfg.report.megabytes
    if not images:
        return None
    if any(folder.has_mask(folder.ids[0]) for folder in folders if folder.ids):
        masks = [*masks, TRUE_MASK]
    workers = session.workers
    listed = [Listed(folder, place, one) for folder in folders for place, one in enumerate(folder.ids)]
    rows = [_row(each, maps) for each in listed]
    order = picture_order(rows, [series.name for series in maps], baseline)
    budget = max(size - RESERVE - len(json.dumps(rows)), 0)
    chosen = order[:images]
    draw = partial(_picture, maps=maps, masks=masks)
    drawn = ordered_map(draw, [listed[number] for number in chosen], workers, threads=True)
    texts = session.track(drawn, "Pictures", len(chosen))
    pictures = _placed(rows, "picture", chosen, fitting(budget * PICTURES_SHARE, texts))
    rest = [number for number in order if "picture" not in rows[number]]
    small = ordered_map(_thumbnail, [listed[number] for number in rest], workers, threads=True)
    left = budget - sum(map(len, pictures))
    texts = session.track(small, "Thumbnails", len(rest)) if rest else iter(())
    thumbnails = _placed(rows, "thumbnail", rest, fitting(left, texts))
    colours = folders[0].palette[1 : folders[0].num_classes + 1]
    data = {
        "classes": list(folders[0].classes),
        "colours": ["#{:02x}{:02x}{:02x}".format(*colour) for colour in colours],
        "columns": [
            *({"name": s.name, "label": s.label, "kind": "maps", "thresholds": s.thresholds} for s in maps),
            *({"name": s.name, "label": s.label, "kind": "mask"} for s in masks),
        ],
        "baseline": baseline,
        "rows": rows,
    }
    return Gallery(data, pictures, thumbnails, _note(len(rows), len(pictures), len(thumbnails), images, size))


def _placed(rows: list[dict[str, Any]], key: str, numbers: Sequence[int], texts: Iterable[str]) -> list[str]:
    """The texts, one for each of the first numbered rows, which get its place in the list under `key`."""
    kept = list(texts)
    for place, number in enumerate(numbers[: len(kept)]):
        rows[number][key] = place
    return kept


def picture_order(rows: Sequence[Mapping[str, Any]], names: Sequence[str], baseline: str | None) -> list[int]:
    """All rows' numbers, those first whose pictures tell most: losses, gains, low scores, evenly spaced.

    Splits take turns, and so do the kinds; within each the extreme ones come first.
    """
    splits = dict.fromkeys(row["split"] for row in rows)
    each = [[number for number, row in enumerate(rows) if row["split"] == split] for split in splits]
    return take_turns(*(_order_within(rows, part, names, baseline) for part in each))


def _order_within(
    rows: Sequence[Mapping[str, Any]], part: list[int], names: Sequence[str], baseline: str | None
) -> list[int]:
    orders = []
    for name in names:
        scores = {n: rows[n]["scores"][name] for n in part if rows[n]["scores"].get(name) is not None}
        base = {n: rows[n]["scores"].get(baseline) for n in scores}
        gains = {n: scores[n] - base[n] for n in scores if base[n] is not None}
        if baseline is not None and name != baseline:
            ascending = sorted(gains, key=lambda n: gains[n])
            orders += [ascending, ascending[::-1]]
        orders.append(sorted(scores, key=lambda n: scores[n]))
    step = max(1, round(len(part) ** 0.5))  # evenly spaced at any number that is taken
    even = [number for start in range(step) for number in part[start::step]]
    return take_turns(*orders, even)


def take_turns(*orders: Iterable[int]) -> list[int]:
    """The items of all orders, the first of each, then the second of each, and so on; each item once.

    >>> take_turns([1, 2, 3], [3, 1, 4])
    [1, 3, 2, 4]
    """
    turns = chain.from_iterable(zip_longest(*orders))
    return list(dict.fromkeys(item for item in turns if item is not None))


def fitting(size: float, texts: Iterable[str]) -> Iterator[str]:
    """Yields texts as long as they have at most `size` characters together."""
    for text in texts:
        size -= len(text)
        if size < 0:
            return
        yield text


def _row(listed: Listed, maps: Sequence[MapSeries]) -> dict[str, Any]:
    """The facts about an image: id, split, classes, scores, and how each adaptation went."""
    folder, place, image_id = listed
    row: dict[str, Any] = {
        "id": image_id,
        "split": folder.split,
        "classes": np.flatnonzero(folder.labels[place]).tolist(),
        "scores": {},
    }
    for series in maps:
        if folder.split in series.scores:
            score = float(series.scores[folder.split][place])
            row["scores"][series.name] = None if np.isnan(score) else round(score, 4)
        record = series.records.get(image_id, {})
        if record.get("steps") or record.get("stopped"):
            went = [record["steps"], record["stopped"] or "all steps"]
            row.setdefault("adaptation", {})[series.name] = went
    return row


def _picture(listed: Listed, maps: Sequence[MapSeries], masks: Sequence[MaskSeries]) -> str:
    """JSON text with the image and all its maps and masks."""
    folder, _, image_id = listed
    pixels = folder.image(image_id)
    columns: dict[str, Any] = {}
    for series in maps:
        found = series.read(image_id)
        steps = small_maps(found)
        shape = {"classes": found.classes.tolist(), "steps": len(steps)}
        columns[series.name] = shape | {"sheet": map_sheet(steps) if len(found.classes) else None}
    for masks_of in masks:
        mask = masks_of.read(folder, image_id)
        columns[masks_of.name] = None if mask is None else label_picture(mask, folder.palette)
    text = json.dumps({"image": photograph(pixels), "columns": columns})
    return text.replace("<", "\\u003c")  # so that it cannot end the script element that holds it


def small_maps(maps: LocalizationMaps) -> torch.Tensor:
    """(S, K, h, w) maps for the page: after each step where these were kept, else S = 1."""
    if maps.steps is not None and len(maps.steps):
        return maps.steps
    return resize(maps.strided, size_within(maps.strided.shape[1:], MAP_SIDE))[None]


def _thumbnail(listed: Listed) -> str:
    return photograph(listed.folder.image(listed.image_id), THUMBNAIL, quality=60)


def _note(rows: int, pictures: int, thumbnails: int, images: int, size: float) -> str:
    """A sentence about the images without pictures."""
    if pictures == rows:
        return ""
    limit = f"report.images={images}" if pictures == min(images, rows) else f"report.megabytes={size / 1e6:g}"
    text = (
        f"{pictures:,} of {rows:,} images have all pictures ({limit}): the largest losses and gains, the "
        "lowest scores, and evenly spaced ones."
    )
    if thumbnails == rows - pictures:
        return f"{text} The others have a thumbnail."
    return f"{text} {thumbnails:,} more have a thumbnail (report.megabytes={size / 1e6:g}); all are listed."


def photograph(image: np.ndarray, side: int = SIDE, quality: int = 78) -> str:
    """A data URI of an (H, W, 3) uint8 image, scaled down to a longer side of `side` pixels."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    return _uri(picture, "jpeg", quality=quality)


def label_picture(mask: np.ndarray, palette: np.ndarray) -> str:
    """A data URI of an (H, W) uint8 mask in the palette's colours, with transparent background (label 0)."""
    height, width = size_within(mask.shape, SIDE)
    picture = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    picture.putpalette(palette.astype(np.uint8).tobytes())
    return _uri(picture, "png", transparency=0, optimize=True)


def map_sheet(steps: torch.Tensor) -> str:
    """A data URI of (S, K, h, w) maps in [0, 1]: one gray picture with a row per class, a column per step."""
    pixels = (255 * steps).round().clamp(0, 255).byte().numpy()
    number, classes, height, width = pixels.shape
    sheet = pixels.transpose(1, 2, 0, 3).reshape(classes * height, number * width)
    return _uri(Image.fromarray(sheet), "png", optimize=True)


def _uri(picture: Image.Image, kind: str, **settings: object) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
