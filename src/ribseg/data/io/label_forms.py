"""Image-level labels in the forms that label tools and data libraries write, read by their content.

docs/own_data.md has a table of the forms, with the tools and versions whose files were read.
"""

import ast
import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np

from ribseg.data.base import special
from ribseg.data.check.near_misses import explained, without_ending
from ribseg.data.io.labels import Problems, label_matrix, labels_from_csv, labels_from_xml
from ribseg.errors import ConfigError, DataError, DatasetNotFoundError, list_problems, reason
from ribseg.files import IMAGE_ENDINGS, read_lines

# Endings of files that may hold labels, beside those of READERS, and names of such folders.
UNREAD = {".ndjson", ".xlsx", ".parquet", ".yaml", ".yml", ".npy", ".npz"}
INNER = ("labels", "annotations", "by_class", "classes")
# Columns that name the image, in lower case: of Roboflow, Label Studio, Hugging Face and our own tables.
IMAGE_COLUMNS = ("image", "filename", "file_name", "file", "path", "image_path", "file_upload")
SYNSETS = "synsets.txt"  # names of the numbers in an imagenet list
UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # that Label Studio puts before the name of an uploaded file
CLASS_LIST = re.compile(r"^(\S+)\s+(-?1|0)$")  # a line of VOC's ImageSets/Main/<class>_<split>.txt
NUMBERED = re.compile(r"^(.+?)((?: \d+)+)\s*$")  # a line of an imagenet list: file name, class numbers


class Labels(NamedTuple):
    """Labels as a file has them.

    Attributes:
        form: of the file, in words.
        rows: images, by any path or name, with the names of their classes.
    """

    form: str
    rows: list[tuple[str, list[str]]]


def read_labels(path: str | Path, ids: Sequence[str], classes: Sequence[str]) -> tuple[np.ndarray, str]:
    """The labels of images from a file or folder of any form, and a sentence of what was read.

    Args:
        path: a table (.csv, .tsv, .jsonl), JSON or XML of a label tool, an imagenet list, a folder of VOC's
            XML files or class lists, or a folder with a folder of images for each class.
        ids: N image ids.
        classes: C names, without background.

    Returns:
        (N, C) bool with rows in the order of ids, and for example "a.json, Label Studio JSON, 24 images".

    Raises:
        DatasetNotFoundError: the file is missing.
        DataError: it has no form that is read, or can be read in two ways; images are missing or doubled, or
            classes are unknown.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetNotFoundError(f"{path} is absent: expected a file or folder with image-level labels.")
    if own_table(path):
        return labels_from_csv(path, ids, classes), f"{path.name}, image,classes"
    if path.is_dir() and any(path.glob("*.xml")):
        return labels_from_xml(path, ids, classes), f"{path.name}/*.xml"
    found = parse_labels(path, classes)
    known = set(ids)
    rows, problems = by_id(found, known)
    absent = [image_id for image_id in ids if image_id not in rows]
    if absent:
        problems["images without labels"] = explained(absent, rows.keys() - known)
    matrix = label_matrix(f"{path} ({found.form})", rows, ids, classes, problems)
    return matrix, f"{path.name}, {found.form}, {len(rows)} images"


def by_id(found: Labels, known: Collection[str]) -> tuple[dict[str, list[str]], Problems]:
    """The names of the classes by image id, and what is wrong with images of several rows.

    Args:
        found: as read.
        known: ids of the images; empty if they are not known.
    """
    rows: dict[str, list[str]] = {}
    problems: Problems = defaultdict(list)
    uploads = not known and all(UPLOAD.match(id_of(name, ())) for name, _ in found.rows)
    for name, named in found.rows:
        image_id = UPLOAD.sub("", id_of(name, ())) if uploads else id_of(name, known)
        if (image_id in known or not known) and set(rows.get(image_id, named)) != set(named):
            problems["images with two rows that differ"].append(f"{name}: {rows[image_id]} and {named}")
        rows[image_id] = named
    return rows, problems


def find_labels(root: Path, masks_dir: Path, classes: Sequence[str]) -> str | Path:
    """What `labels="auto"` takes: the one file or folder with labels, or "xml"; "mask" where there is none.

    Args:
        root: of a data set in VOC layout: its files, Annotations/ and ImageSets/Main/ are looked at.
        masks_dir: the folder of the masks.
        classes: C names.

    Raises:
        ConfigError: there are several.
        DataError: there is none, but what may be meant as labels; or no masks either.
    """
    annotations, lists = root / "Annotations", root / "ImageSets" / "Main"
    inside = sorted(path.name for path in annotations.glob("[!.]*")) if annotations.is_dir() else []
    readable: list[str | Path] = ["xml"] if any(name.lower().endswith(".xml") for name in inside) else []
    odd = {} if readable or not inside else {annotations: f"no XML file, but {inside[0]}"}
    for path in [path for path in sorted(root.glob("[!.]*")) if path.is_file() and may_be_labels(path)]:
        try:
            if path.suffix.lower() in READERS and (own_table(path) or parse_labels(path, classes)):
                readable.append(path)
            else:
                odd[path] = "no form that is read"
        except DataError as error:
            odd[path] = str(error).removeprefix(f"{path}: ")
    odd |= dict.fromkeys(inner_labels(root), "not looked into")
    if not readable and any(lists.glob("*_*.txt")):
        readable = [lists]
    named = [path for path in odd if "label" in path.stem.lower() and path.is_file()]
    if readable and named:
        raise DataError(
            f"{named[0]} cannot be read ({odd[named[0]]}), and there are labels in {readable[0]}. Choose by "
            "data.labels: xml, or the path of a file"
        )
    if len(readable) > 1:
        found = " and in ".join("Annotations/" if each == "xml" else str(each) for each in readable)
        raise ConfigError(f"labels are in {found}. Choose by data.labels: xml, or the path of a file")
    if readable:
        return readable[0]
    if odd:
        listed = [f"{path.relative_to(root)}: {why}" for path, why in odd.items()]
        what = {"what may be meant as labels": listed}
        advice = f"Read are {FORMS}. data.labels=mask takes the labels from the ground-truth masks."
        raise DataError(list_problems(f"no labels are read from {root}", what, advice))
    if not masks_dir.is_dir():
        there = ", ".join(sorted(path.name for path in root.glob("[!.]*"))[:12])
        raise DatasetNotFoundError(
            f"no labels in {root}: looked for XML files in Annotations/, for lists in ImageSets/Main/, for "
            f"tables and JSON, and for masks in {masks_dir}. There are {there}. Give data.labels=PATH."
        )
    return "mask"


def may_be_labels(path: Path) -> bool:
    """Whether a file at the top of a data set may hold labels, by its name."""
    name, suffixes = path.name.lower(), {suffix.lower() for suffix in path.suffixes}
    if name in ("classes.txt", "labelmap.txt", SYNSETS):
        return False
    if ".txt" in suffixes:
        return path.with_name(SYNSETS).is_file() or any(word in name for word in ("label", "annot", "tags"))
    return bool(suffixes & {*READERS, *UNREAD})


def inner_labels(root: Path) -> list[Path]:
    """Files and folders below a data set that may hold labels, by their names."""
    inside = [*root.glob("*/metadata.*"), *root.glob("*/_classes.csv")]
    folders = [
        path for path in root.glob("*") if path.is_dir() and path.name in INNER and any(path.iterdir())
    ]
    return sorted({*inside, *folders})


def id_of(name: str, known: Collection[str]) -> str:
    """The id of an image that a file names by a path, an address or an upload.

    >>> id_of("/data/upload/1/0a1b2c3d-im_1.jpg", {"im_1"}), id_of("train/im%201.png", ())
    ('im_1', 'im 1')
    """
    last = unquote(re.split(r"\?d=|[?#]", name)[-1] if "?d=" in name else name.partition("?")[0])
    stem = without_ending(last.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1])
    short = UPLOAD.sub("", stem)
    return short if stem not in known and short in known else stem


def parse_labels(path: Path, classes: Sequence[str]) -> Labels:
    """The content of a file or folder of labels; raises a DataError if it has no form that is read."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return _parsed.__wrapped__(path, tuple(classes), ())
    status = path.stat()
    return _parsed(path, tuple(classes), (status.st_ino, status.st_mtime_ns, status.st_size))


# A JSON of COCO's size takes long, and is looked at to choose it, and again for each split.
@lru_cache(maxsize=1)
def _parsed(path: Path, classes: tuple[str, ...], version: tuple[int, ...]) -> Labels:
    try:
        if path.is_dir():
            found = _class_lists(path, classes) or _folders(path)
        else:
            reader = READERS.get(path.suffix.lower())
            found = None if reader is None else reader(path, classes)
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"{path}: {error}") from error
    except (OSError, ValueError, LookupError, TypeError, csv.Error, ElementTree.ParseError) as error:
        raise DataError(f"{path} cannot be read as labels: {reason(error)}") from error
    if found is None:
        raise DataError(f"{path} has no form of labels that is read: {FORMS}.")
    return found


def own_table(path: Path) -> bool:
    """Whether a file is a CSV with the columns `image,classes`."""
    if path.suffix.lower() != ".csv":
        return False
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = next(csv.reader(file, skipinitialspace=True), [])
    return {"image", "classes"} <= {name.strip() for name in first}


def _table(path: Path, classes: Sequence[str]) -> Labels | None:
    """A table with a row for each image: a column per class with 0 and 1, or one with the names."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True, delimiter=delimiter)
        reader.fieldnames = names = [(name or "").strip() for name in reader.fieldnames or []]
        double = sorted({name for name in names if name and names.count(name) > 1})
        if double:
            raise DataError(f"{path} has several columns of one name: {double}")
        return _records(list(reader), classes, path)


def _json_lines(path: Path, classes: Sequence[str]) -> Labels | None:
    return _records([json.loads(line) for line in read_lines(path)], classes, path)


def _json(path: Path, classes: Sequence[str]) -> Labels | None:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
        return _coco(content, classes)
    if isinstance(content, list) and content and all(isinstance(task, dict) for task in content):
        return _tasks(content, classes) if "annotations" in content[0] else _records(content, classes, path)
    return None


def _records(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], path: Path) -> Labels | None:
    """Rows of equal columns: one names the image, the others its classes."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name is not None))
    images = [name for name in columns if name.lower() in IMAGE_COLUMNS]
    if not images:
        return None
    others = [name for name in columns if name not in images]
    flags = [name for name in others if all(_is_flag(row.get(name)) for row in rows)]
    if set(flags) & {*classes}:
        return _one_hot(rows, images[0], flags, classes, path)
    fitting = [name for name in others if _fits([row.get(name) for row in rows], classes)]
    if len(fitting) != 1:
        found = f"{' and '.join(fitting)} both" if fitting else f"none of {', '.join(others)}"
        raise DataError(
            f"{path}: expected one column with the names of classes.txt ({', '.join(classes[:5])}), and "
            f"{found} can be it. Keep the image and that one."
        )
    (column,) = fitting
    cells = [(str(row[images[0]]), _names(row.get(column), classes)) for row in rows]
    return Labels(f"column {column!r}", cells)


def _one_hot(
    rows: Sequence[Mapping[str, Any]], image: str, flags: Sequence[str], classes: Sequence[str], path: Path
) -> Labels:
    absent, unknown = [c for c in classes if c not in flags], [name for name in flags if name not in classes]
    used = [name for name in unknown if any(_is_set(row[name]) for row in rows)]
    if absent or used:
        raise DataError(
            f"{path}: expected a column for each name of classes.txt; no column for {absent[:5]}, and no "
            f"such class as {used[:5]}."
        )
    cells = [(str(row[image]), [c for c in classes if _is_set(row[c])]) for row in rows]
    return Labels("a column for each class", cells)


def _is_flag(cell: Any) -> bool:
    return str(cell).strip().lower() in ("0", "1", "0.0", "1.0", "true", "false")


def _is_set(cell: Any) -> bool:
    return str(cell).strip().lower() in ("1", "1.0", "true")


def _fits(cells: Sequence[Any], classes: Sequence[str]) -> bool:
    """Whether cells can be the labels: all that is in them, and something, are names of classes."""
    names = [name for cell in cells for name in _names(cell, classes)]
    return bool(names) and set(names) <= set(classes)


def _names(cell: Any, classes: Collection[str]) -> list[str]:
    """Names in a cell: one, several in a list (a text, too) or in a dictionary of Label Studio.

    >>> _names('{"choices": ["cat","cow"]}', ["cat"]), _names("cat", ["cat"]), _names("['a', 'b']", [])
    (['cat', 'cow'], ['cat'], ['a', 'b'])
    """
    if isinstance(cell, Mapping):
        return [name for value in cell.values() for name in _names(value, classes)]
    if isinstance(cell, list | tuple):
        return [name for each in cell for name in _names(each, classes)]
    text = "" if cell is None else str(cell).strip()
    if text[:1] in ("[", "{") and text not in classes:
        return _names(ast.literal_eval(text), classes)
    if not text or text in classes:
        return [text] if text else []
    if "_".join(text.split()) in classes:  # as we write names with spaces
        return ["_".join(text.split())]
    parts = [part.strip() for part in re.split(r"[,;|]|\s+", text) if part.strip()]
    return parts if all(part in classes for part in parts) else [text]


def _tasks(tasks: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Labels:
    """Tasks of Label Studio: choices of the image, and the labels of regions, of one control."""
    rows: list[tuple[str, list[str]]] = []
    controls, others = set[str](), set[str]()
    for task in tasks:
        data = task.get("data") or {}
        images = [data[name] for name in data if name.lower() in IMAGE_COLUMNS] or [task.get("file_upload")]
        for annotation in (each for each in task["annotations"] if not each.get("was_cancelled")):
            results = annotation.get("result") or []
            named: list[str] = []
            for result in results:
                lists = [
                    v for k, v in (result.get("value") or {}).items() if k.endswith(("labels", "choices"))
                ]
                controls |= {str(result["from_name"])} if lists and "from_name" in result else set()
                named += [name for names in lists for name in names]
            if results and not named:
                others |= {str(result.get("type")) for result in results}
            rows.append((str(images[0]), _names(list(dict.fromkeys(named)), classes)))
    if others:
        raise DataError(f"results of Label Studio that are no choices and no labels: {sorted(others)}")
    if len(controls) > 1:
        raise DataError(f"labels of several controls of Label Studio, {sorted(controls)}: export one")
    return Labels("Label Studio JSON", rows)


def _coco(content: Mapping[str, Any], classes: Sequence[str]) -> Labels:
    """Instances of COCO: the categories of an image's annotations."""
    for key in ("categories", "images"):
        ids = [each["id"] for each in content[key]]
        if len(set(ids)) < len(ids):
            raise DataError(f"{key} of one id: {sorted({i for i in ids if ids.count(i) > 1})[:5]}")
    names = {each["id"]: str(each["name"]) for each in content["categories"]}
    found: dict[Any, list[str]] = {each["id"]: [] for each in content["images"]}
    for each in content["annotations"]:
        name = names[each["category_id"]]
        if name not in found[each["image_id"]] and special(name) is None:
            found[each["image_id"]].append(name)
    rows = [(str(each["file_name"]), _names(found[each["id"]], classes)) for each in content["images"]]
    return Labels("COCO JSON", rows)


def _xml(path: Path, classes: Sequence[str]) -> Labels | None:
    """CVAT for images: the tags of an image, and the labels of its shapes."""
    root = ElementTree.parse(path).getroot()
    if root.tag != "annotations":
        return None
    rows = [
        (
            image.get("name", ""),
            list(dict.fromkeys(each.get("label", "") for each in image if each.get("label"))),
        )
        for image in root.iter("image")
    ]
    return Labels("CVAT for images", rows)


def _numbers(path: Path, classes: Sequence[str]) -> Labels | None:
    """Datumaro's imagenet_txt: file name and numbers of classes, which are named in synsets.txt."""
    names = path.with_name(SYNSETS)
    if not names.is_file():
        return None
    known = read_lines(names)
    rows = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        found = NUMBERED.match(line)
        name, numbers = (found[1], found[2].split()) if found else (line.strip(), [])
        if name:
            rows.append((name.strip('"'), [known[int(number)] for number in numbers]))
    return Labels("imagenet list with synsets.txt", rows)


def _class_lists(folder: Path, classes: Sequence[str]) -> Labels | None:
    """VOC's ImageSets/Main/<class>_<split>.txt: ids with 1 and -1; 0 is difficult, and counts as there."""
    rows: dict[str, list[str]] = {}
    lists = {path: path.stem.rpartition("_")[0] for path in sorted(folder.glob("*_*.txt"))}
    if not lists:
        return None
    # Datumaro leaves images without any class out of all of them, but not out of the plain list.
    plain = [path for path in sorted(folder.glob("*.txt")) if path not in lists]
    for image_id in (line.split()[0] for path in plain for line in read_lines(path)):
        rows.setdefault(image_id, [])
    for path, name in lists.items():
        for line in read_lines(path):
            found = CLASS_LIST.match(line)
            if found is None:
                raise DataError(f"{path}: expected an id and 1, 0 or -1, found {line[:50]!r}.")
            rows.setdefault(found[1], []).extend([name] if found[2] != "-1" else [])
    for name in classes:
        if name not in lists.values():
            raise DataError(f"{folder}: expected lists for all of classes.txt, found none for {name!r}.")
    return Labels("VOC's class lists", [(i, list(dict.fromkeys(names))) for i, names in rows.items()])


def _folders(folder: Path) -> Labels | None:
    """A folder of images for each class, as torchvision's ImageFolder has them."""
    rows: dict[str, list[str]] = {}
    first: dict[str, Path] = {}
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith("."):
            named = [] if path.parent.name in ("no_label", "unlabeled") else [path.parent.name]
            if path.read_bytes() != first.setdefault(path.name, path).read_bytes():
                raise DataError(
                    f"{path} and {first[path.name]} are different photographs of one name: rename one"
                )
            rows.setdefault(path.name, []).extend(named)
    return Labels("a folder for each class", list(rows.items())) if rows else None


READERS: dict[str, Callable[[Path, Sequence[str]], Labels | None]] = {
    ".csv": _table,
    ".tsv": _table,
    ".jsonl": _json_lines,
    ".json": _json,
    ".xml": _xml,
    ".txt": _numbers,
}
FORMS = (
    "a table image,classes; a column for each class; a column of names (.csv, .tsv, .jsonl, .json); "
    "Label Studio or COCO JSON; CVAT's XML; an imagenet list beside synsets.txt; a folder of VOC's class "
    "lists, or one with a folder of images for each class"
)
