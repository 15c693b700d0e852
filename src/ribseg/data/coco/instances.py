"""Reading and checking COCO's `instances_*.json`."""

import json
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from ribseg.data.base import BACKGROUND
from ribseg.errors import DataError, DatasetNotFoundError, list_problems, reason
from ribseg.files import is_plain_id

Problems = dict[str, list[str]]
LARGEST_SIDE = 65_500  # of a JPEG
LARGEST, MORE, NEGATIVE = 64, 32, 16  # of a character of a compressed run-length code


class ImageRecord(NamedTuple):
    """An image of COCO.

    Attributes:
        id: the file name without extension.
        height: in pixels.
        width: in pixels.
    """

    id: str
    height: int
    width: int


class Instance(NamedTuple):
    """An object of COCO.

    Attributes:
        label: 1 for the first category.
        crowd: whether it is a region with many objects (iscrowd).
        segmentation: polygons [[x0, y0, x1, y1, ...], ...] in pixels, or COCO's run-length encoding.
    """

    label: int
    crowd: bool
    segmentation: Any


class Instances(NamedTuple):
    """The content of a file of instances.

    Attributes:
        names: of the categories, in the order of their ids, with underscores for spaces.
        images: in the file's order.
        objects: of each image, in the file's order.
    """

    names: list[str]
    images: list[ImageRecord]
    objects: list[list[Instance]]


def read_instances(path: str | Path) -> Instances:
    """Reads and checks a file of instances.

    Raises:
        DatasetNotFoundError: the file does not exist.
        DataError: it is not a file of instances, or has broken entries; lists them.
    """
    content = _load(Path(path))
    problems: Problems = {}
    label, names = _categories(content["categories"], problems)
    place, images = _images(content["images"], problems)
    objects: list[list[Instance]] = [[] for _ in images]
    for number, item in enumerate(content["annotations"]):
        problem = _problem(item, place, label, images)
        if problem:
            problems.setdefault(problem, []).append(f"annotation {_name(item, number)}")
            continue
        instance = Instance(label[item["category_id"]], bool(item.get("iscrowd", 0)), item["segmentation"])
        objects[place[item["image_id"]]].append(instance)
    if problems:
        advice = "Fetch the annotations again, or take the broken entries out."
        raise DataError(list_problems(f"{path} cannot be used", problems, advice))
    return Instances(names, images, objects)


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"no {path}; expected annotations/instances_<split>.json") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {reason(error)}. Fetch it again.") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise DataError(f"{path}: expected an object with COCO's lists {', '.join(keys)}")
    return content


def _categories(items: list[Any], problems: Problems) -> tuple[dict[int, int], list[str]]:
    """Category id -> label, and the names in the order of the labels; a category "background" has label 0."""
    named: dict[int, str] = {}
    for number, item in enumerate(items):
        good = isinstance(item, dict) and _is_int(item.get("id")) and isinstance(item.get("name"), str)
        name = "_".join(item["name"].split()) if good else ""
        if not name or not name.isprintable() or item["id"] in named:
            problems.setdefault("categories without an id of their own and a name", []).append(str(number))
        else:
            named[item["id"]] = name
    ids = sorted(category for category, name in named.items() if name.lower() != BACKGROUND)
    if len(set(named.values())) < len(named) or not 1 <= len(ids) <= 254:
        problems.setdefault("expected 1 to 254 categories of different names", []).append(f"{len(named)}")
    labels = dict.fromkeys(named, 0) | {category: label for label, category in enumerate(ids, start=1)}
    return labels, [named[i] for i in ids]


def _images(items: list[Any], problems: Problems) -> tuple[dict[int, int], list[ImageRecord]]:
    """Image id -> index in the list of records, and this list."""
    place: dict[int, int] = {}
    records: list[ImageRecord] = []
    seen: set[str] = set()
    for number, item in enumerate(items):
        good = isinstance(item, dict) and _is_int(item.get("id")) and isinstance(item.get("file_name"), str)
        sides = [item.get(side) for side in ("height", "width")] if good else []
        if not good or not _is_size(sides):
            problems.setdefault("images without id, file_name and size", []).append(_name(item, number))
            continue
        stem = PurePosixPath(item["file_name"]).stem
        if not is_plain_id(stem):
            problems.setdefault("images whose file_name is no plain name", []).append(repr(item["file_name"]))
            continue
        if item["id"] in place or stem in seen:
            problems.setdefault("images that are there twice", []).append(item["file_name"])
            continue
        seen.add(stem)
        place[item["id"]] = len(records)
        records.append(ImageRecord(stem, *sides))
    return place, records


def _problem(item: Any, place: dict[int, int], label: dict[int, int], images: list[ImageRecord]) -> str:
    """The problem with an annotation; "" if there is none."""
    if not isinstance(item, dict):
        return "no objects"
    for key, known in (("image_id", place), ("category_id", label)):
        if not _is_int(item.get(key)) or item[key] not in known:
            return f"unknown {key}"
    if item.get("iscrowd", 0) not in (0, 1):
        return "iscrowd is neither 0 nor 1"
    record = images[place[item["image_id"]]]
    segmentation = item.get("segmentation")
    if isinstance(segmentation, list):
        reach = 2 * max(record.height, record.width)
        good = bool(segmentation) and all(_is_polygon(polygon, reach) for polygon in segmentation)
        return "" if good else "no polygons inside the image"
    return "" if _is_code(segmentation, record) else "no run-length code of the image's size"


def _is_polygon(values: Any, reach: int) -> bool:
    """Whether these are coordinates of a polygon; pycocotools would allocate memory up to distant points."""
    if not isinstance(values, list) or len(values) < 6 or len(values) % 2:
        return False
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and all(-reach <= value <= reach for value in values)  # False for NaN, too


def _is_code(code: Any, record: ImageRecord) -> bool:
    size = code.get("size") if isinstance(code, dict) else None
    # 40.0 equals 40, but pycocotools takes only whole numbers.
    if size != [record.height, record.width] or not all(_is_int(side) for side in size):
        return False
    counts = code.get("counts")
    runs = runs_of(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(_is_int(run) and run >= 0 for run in runs):
        return False
    return sum(runs) == record.height * record.width


def runs_of(code: str) -> list[int] | None:
    """The lengths of the runs of one of COCO's compressed codes; None if it is broken.

    Each character has five bits of a number and one that says whether more follow; from the fourth run on,
    the number is the difference from the run before the last. Not read by pycocotools, which does not check
    codes: where one is cut off, it returns a mask with whatever the memory holds.

    >>> runs_of("52203")
    [5, 2, 2, 2, 5]
    """
    runs: list[int] = []
    value = shift = 0
    for sign in code:
        bits = ord(sign) - ord("0")
        if not 0 <= bits < LARGEST or shift > 30:
            return None
        value |= (bits & MORE - 1) << shift
        shift += 5
        if bits & MORE:
            continue
        if bits & NEGATIVE:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs


def _is_size(sides: list[Any]) -> bool:
    """Whether these are sides of an image within Pillow's limit, as memory is allocated by them."""
    if not all(_is_int(side) and 1 <= side <= LARGEST_SIDE for side in sides):
        return False
    return Image.MAX_IMAGE_PIXELS is None or sides[0] * sides[1] <= Image.MAX_IMAGE_PIXELS


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _name(item: Any, number: int) -> str:
    known = isinstance(item, dict) and _is_int(item.get("id"))
    return f"{item['id']}" if known else f"number {number}, counted from 0"
