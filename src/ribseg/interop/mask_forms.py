"""Masks in the forms of label tools and trainers, as PNGs of class ids: docs/exports.md has the table."""

import base64
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ribseg.checks import check_choice
from ribseg.data.base import BACKGROUND, check_names, special
from ribseg.data.coco.instances import read_instances
from ribseg.data.coco.masks import semantic_mask
from ribseg.data.io.images import load_pixels, open_image
from ribseg.data.io.masks import (
    CLASSES,
    IGNORE,
    class_names_of,
    mask_ids,
    read_mask,
    voc_palette,
    write_class_names,
    write_mask,
)
from ribseg.errors import DataError, DatasetNotFoundError, list_problems, reason
from ribseg.files import is_plain_id, scan_folder
from ribseg.progress import track


@dataclass(frozen=True)
class MaskSource:
    """Masks of a form.

    Attributes:
        classes: C names, without background.
        ids: of the images.
        read: id -> (H, W) uint8 of class ids, 255 ignored.
        said: what was chosen, in a sentence; or "".
    """

    classes: Sequence[str]
    ids: Sequence[str]
    read: Callable[[str], np.ndarray]
    said: str = ""


def import_masks(
    form: str,
    source: str | Path,
    out: str | Path,
    classes: Sequence[str] | None = None,
    progress: bool | str = False,
) -> tuple[int, str]:
    """Writes masks of a form as `<id>.png` with classes.txt; returns their number, and what was chosen.

    The ids are the names of the files; the classes are found by name.

    Args:
        form: a key of `FORMS`.
        source: folder or file, see there.
        out: folder.
        classes: names in the order of the ids; None for the order of the form.
        progress: how progress is shown, see `ribseg.progress.check_progress`.

    Raises:
        DatasetNotFoundError: there are no such files.
        DataError: a file is broken, or has a class or colour that is not named; lists them.
    """
    check_choice("form", form, tuple(FORMS))
    with _said(Path(source)):
        found = FORMS[form](Path(source), classes)
    if not found.ids:
        raise DatasetNotFoundError(f"no masks of the form {form} in {source}")
    problems = [image_id for image_id in found.ids if not is_plain_id(image_id)]
    if problems:
        named = {"no plain file names": problems}
        raise DataError(list_problems(f"{source} cannot be used", named, "Rename them."))
    there = class_names_of(out) if Path(out, CLASSES).is_file() else None
    if there is not None and there != list(found.classes):
        raise DataError(
            f"{out} holds masks of the classes {there[:8]}, but these are {list(found.classes)[:8]}: choose "
            "another folder, or give the order by --names"
        )
    for image_id in track(found.ids, "Reading masks", len(found.ids), progress, unit="mask"):
        with _said(Path(source)):
            write_mask(Path(out, f"{image_id}.png"), found.read(image_id))
    write_class_names(out, found.classes)
    return len(found.ids), found.said


@contextmanager
def _said(source: Path) -> Iterator[None]:
    """Turns what goes wrong with an odd file into a DataError that names it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{source} does not have its form: {type(error).__name__}: {reason(error)}"
        ) from error


def coloured(source: Path, classes: Sequence[str] | None) -> MaskSource:
    """VOC's RGB or palette masks in SegmentationClass/, with the colours of labelmap.txt (CVAT, Datumaro)."""
    path = source / "labelmap.txt"
    if not path.is_file():
        raise DatasetNotFoundError(f"{path} is absent: a line name:r,g,b:: for each class")
    rows = [line.partition(":") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    named = [(name, rest.partition(":")[0]) for name, _, rest in rows if name and not name.startswith("#")]
    palette, said = voc_palette(), ""
    bare = [name for name, colour in named if not colour]
    if bare and len(bare) < len(named):
        raise DataError(f"{path} has colours for some names alone; none for {bare[:5]}")
    if bare:
        said = "labelmap.txt has no colours: VOC's are taken, in the order of its names"
    colours = {
        name: tuple(map(int, colour.split(","))) if colour else tuple(palette[number].tolist())
        for number, (name, colour) in enumerate(named)
    }
    order, ids = numbered([name for name, _ in named], classes, path)
    if len(set(colours.values())) < len(colours):
        raise DataError(f"{path} has one colour for several names: {colours}")
    table = {colours[name]: ids[name] for name in colours}
    table.setdefault(tuple(palette[IGNORE].tolist()), IGNORE)
    folder = source / "SegmentationClass"
    files = scan_folder(folder, (".png",))
    return MaskSource(order, sorted(files), lambda i: _by_colour(folder / files[i], table), said)


def numbered(
    names: Sequence[str], classes: Sequence[str] | None, source: Path
) -> tuple[list[str], dict[str, int]]:
    """The classes without background, and name -> id; background is 0, and what is ignored 255."""
    own = [name for name in names if special(name) is None]
    if classes is not None:
        check_names(classes, "--names")
    elif own:
        check_names(own, str(source))
    order = own if classes is None else list(classes)
    # The given names may have underscores for spaces.
    spelled = {name: name if name in order else "_".join(name.split()) for name in own}
    unknown = [name for name, known in spelled.items() if known not in order]
    if unknown:
        raise DataError(f"{source} has classes that are not among the given names: {unknown[:5]}")
    ids = {name: order.index(known) + 1 for name, known in spelled.items()}
    return order, ids | {name: special(name) or 0 for name in names if name not in ids}


def labelme(source: Path, classes: Sequence[str] | None) -> MaskSource:
    """Labelme's JSON files: polygons with their outlines, rectangles and masks; later shapes on top."""
    files = scan_folder(source, (".json",))
    contents = {image_id: _json(source / name) for image_id, name in files.items()}
    shapes = {i: c["shapes"] for i, c in contents.items() if isinstance(c, dict) and "shapes" in c}
    names = sorted({str(shape["label"]) for each in shapes.values() for shape in each})
    order, ids = numbered(names, classes, source)
    said = "" if classes else f"the classes are ordered by name: {', '.join(order)}"

    def read(image_id: str) -> np.ndarray:
        content = contents[image_id]
        mask = np.zeros((int(content["imageHeight"]), int(content["imageWidth"])), np.uint8)
        for number, shape in enumerate(shapes[image_id]):
            try:
                mask[_shape(shape, mask.shape)] = ids[str(shape["label"])]
            except (ValueError, LookupError, TypeError) as error:
                raise DataError(f"{source / files[image_id]}, shape {number}: {reason(error)}") from error
        return mask

    return MaskSource(order, sorted(shapes), read, said)


def coco(source: Path, classes: Sequence[str] | None) -> MaskSource:
    """COCO's instances JSON: polygons and run lengths; later objects on top, crowds as objects."""
    found = read_instances(source)
    order, ids = numbered(found.names, classes, source)
    renumber = np.array([0, *(ids[name] for name in found.names)], np.uint8)
    records = {record.id: number for number, record in enumerate(found.images)}

    def read(image_id: str) -> np.ndarray:
        number = records[image_id]
        return renumber[semantic_mask(found.images[number], found.objects[number])]

    return MaskSource(order, sorted(records), read)


def nnunet(source: Path, classes: Sequence[str] | None) -> MaskSource:
    """nnU-Net's labelsTr/ with the numbers of dataset.json; its ignore label is 255."""
    labels = _json(source / "dataset.json")["labels"]
    if not all(isinstance(number, int) for number in labels.values()):
        raise DataError(f"{source / 'dataset.json'} has regions of several labels: {labels}")
    names = sorted(labels, key=labels.__getitem__)
    order, ids = numbered(names, classes, source)
    files = scan_folder(source / "labelsTr", (".png",))
    table = {number: ids[name] for name, number in labels.items()}
    return MaskSource(order, sorted(files), lambda i: _by_number(source / "labelsTr" / files[i], table))


def gray(source: Path, classes: Sequence[str] | None) -> MaskSource:
    """PNGs of numbers beside names: classes.txt, Hugging Face's id2label.json, Roboflow's _classes.csv."""
    names = _names_of(source)
    if names is None and classes is None:
        raise DataError(
            f"no names of the numbers in {source}: expected classes.txt, id2label.json, _classes.csv, or "
            "--names"
        )
    listed = names or dict(enumerate((BACKGROUND, *(classes or ()))))
    order, ids = numbered(list(listed.values()), classes, source)
    table = {number: ids[name] for number, name in listed.items()} | {IGNORE: IGNORE}
    files = {stem.removesuffix("_mask"): name for stem, name in scan_folder(source, (".png",)).items()}
    marked = {i: name for i, name in files.items() if name.lower().endswith("_mask.png")}
    chosen = marked or files  # Roboflow's lie beside the photographs
    return MaskSource(order, sorted(chosen), lambda i: _by_number(source / chosen[i], table))


FORMS: dict[str, Callable[[Path, Sequence[str] | None], MaskSource]] = {
    "voc": coloured,
    "labelme": labelme,
    "coco": coco,
    "nnunet": nnunet,
    "gray": gray,
}


def _names_of(source: Path) -> dict[int, str] | None:
    """Number -> name, from the file that lies beside masks, or above them."""
    table = source / "_classes.csv"
    if table.is_file():
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
        return {int(row[0]): row[1] for row in rows[1:] if len(row) > 1}
    for place in (source, source.parent, source.parent.parent):
        if (place / "id2label.json").is_file():
            return {int(number): name for number, name in _json(place / "id2label.json").items()}
    names = class_names_of(source)
    return None if names is None else dict(enumerate((BACKGROUND, *names)))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"{path} is absent") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {reason(error)}") from error


def _by_number(path: Path, table: Mapping[int, int]) -> np.ndarray:
    """A mask with its numbers replaced by ids; a DataError for one without a name."""
    numbers = read_mask(path)
    lookup = np.zeros(256, np.uint8)
    lookup[list(table)] = list(table.values())
    unknown = sorted(set(mask_ids(numbers).tolist()) - set(table))
    if unknown:
        raise DataError(
            f"{path} holds the numbers {unknown[:5]}, which have no name; there are {dict(table)}"
        )
    return lookup[numbers]


def _by_colour(path: Path, table: Mapping[tuple[int, ...], int]) -> np.ndarray:
    """A mask whose colours stand for ids; a DataError for a colour that is not named."""
    with open_image(path) as image:
        load_pixels(image, path)
        pixels = np.asarray(image.convert("RGB")).astype(np.int64) @ (1 << 16, 1 << 8, 1)
    codes = {(r << 16) + (g << 8) + b: number for (r, g, b), number in table.items()}
    found, places = np.unique(pixels, return_inverse=True)
    unknown = [f"{code >> 16},{code >> 8 & 255},{code & 255}" for code in found.tolist() if code not in codes]
    if unknown:
        problems = {"colours without a name": unknown}
        raise DataError(list_problems(f"{path} cannot be used", problems, "Name them in labelmap.txt."))
    return np.array([codes[code] for code in found.tolist()], np.uint8)[places].reshape(pixels.shape)


def _shape(shape: Mapping[str, Any], size: tuple[int, ...]) -> np.ndarray:
    """The region of a shape of labelme: (H, W) bool."""
    from PIL import ImageDraw

    kind, points = shape.get("shape_type") or "polygon", [tuple(map(float, p)) for p in shape["points"]]
    region = Image.new("1", (size[1], size[0]))
    if kind == "polygon" and len(points) > 2:
        ImageDraw.Draw(region).polygon(points, outline=1, fill=1)
    elif kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        ImageDraw.Draw(region).rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1)
    elif kind == "mask" and shape.get("mask"):
        part = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
        region.paste(part.convert("1"), (round(points[0][0]), round(points[0][1])))
    else:
        raise ValueError(f"expected polygon | rectangle | mask, found {kind} of {len(points)} points")
    return np.asarray(region)
