"""The folders, lists and class names of a data set in VOC layout."""

import re
import sys
from collections.abc import Container, Sequence
from pathlib import Path

from ribseg.data.base import check_classes, check_names
from ribseg.data.check.near_misses import without_ending
from ribseg.errors import DataError, DatasetNotFoundError, list_problems
from ribseg.files import is_plain_id, read_lines, scan_folder

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SPACES = "ids with spaces"
COLUMNS = "more than an id"
NUMBER = re.compile(r"^\s*\d+[\s:.,;=-]+")


def find_root(root: str | Path, images_dirs: Sequence[str], lists_dir: str) -> Path:
    """The folder in VOC layout: root itself, or VOCdevkit/VOC2012 or VOC2012 below it.

    Raises:
        DatasetNotFoundError: if none of them has the folders of images and lists.
    """
    needed = (*images_dirs, lists_dir)
    candidates = [Path(root), Path(root) / "VOCdevkit" / "VOC2012", Path(root) / "VOC2012"]
    for candidate in candidates:
        if all((candidate / folder).is_dir() for folder in needed):
            return candidate
    expected = [f"{folder}/" for folder in needed]
    lacking = f"no {' or no '.join(expected)}"
    tried = [f"{folder}: {lacking if folder.is_dir() else 'no such folder'}" for folder in candidates]
    headline = f"no data set in VOC layout at {root}: expected the folders {' and '.join(expected)}"
    advice = "Set data.root to the folder that holds them."
    raise DatasetNotFoundError(list_problems(headline, {"looked in": tried}, advice))


def read_split(folder: Path, split: str, images: Container[str]) -> tuple[tuple[str, ...], list[str]]:
    """The names of all lists, and the ids of one of them."""
    lists = scan_folder(folder, (".txt",))
    splits = tuple(sorted(lists))
    if split not in lists:
        raise DatasetNotFoundError(
            f"no list of the split {split!r}: expected {folder / split}.txt. Lists that there are: "
            f"{', '.join(splits) or 'none'}."
        )
    path = folder / lists[split]
    lines = read_lines(path)
    ids = [sys.intern(line.split()[0]) for line in lines]
    if not ids:
        raise DataError(f"the split {split!r} is empty: {path} names no image. Expected one image id a line.")
    problems: dict[str, list[str]] = {}
    for number, (line, image_id) in enumerate(zip(lines, ids, strict=True), 1):
        if kind := _problem_of_line(line, image_id, images):
            problems.setdefault(kind, []).append(f"entry {number}: {line!r}")
    first = dict(zip(reversed(ids), reversed(range(len(ids))), strict=True))
    repeated = [row for row, image_id in enumerate(ids) if first[image_id] < row]
    if repeated and SPACES not in problems:  # ids with spaces may share their first word
        problems["named twice"] = [f"entry {row + 1}: {lines[row]}" for row in repeated]
    if problems:
        advice = "An id is the image's file name without ending and without folder; name each once."
        if {SPACES, COLUMNS} & problems.keys():
            advice += (
                " If file names hold spaces, rename the files (underscores, for example) and the ids in all "
                "lists. Numbers after an id are labels, of VOC's class lists or an imagenet list: write a "
                "list of ids alone, and give that file by data.labels."
            )
        raise DataError(list_problems(f"{path} cannot be used", problems, advice))
    return splits, ids


def _problem_of_line(line: str, image_id: str, images: Container[str]) -> str | None:
    """The kind of problem with a line of a list and its first word; None if there is none."""
    if line != image_id and (line in images or without_ending(line) in images):
        return SPACES
    if not is_plain_id(image_id):
        return "no plain file name"
    if line != image_id:
        return COLUMNS
    stem = without_ending(image_id)
    if stem != image_id and stem in images and image_id not in images:
        return "ids with an ending (write x, not x.jpg)"
    return None


def class_names(root: Path, classes: Sequence[str] | str | Path | None) -> tuple[str, ...]:
    """The class names without background: as given, from a file, from classes.txt, or VOC's."""
    path = root / (classes if isinstance(classes, str | Path) else "classes.txt")
    source = "classes"
    if isinstance(classes, str | Path) or (classes is None and path.is_file()):
        classes, source = read_lines(path), str(path)
    names = VOC_CLASSES if classes is None else tuple(classes)
    check_classes(names, source)
    bare = [NUMBER.sub("", name) for name in names]
    for listed in (names, bare):
        if len(set(listed)) == len(listed):
            check_names(listed, source)
    if bare != list(names) and "" not in bare and len(set(bare)) == len(bare) and _is_counted(names):
        raise DataError(
            f"{source} has numbers in front of its names: {', '.join(names[:3])}. Write the names alone, one "
            "a line: the first is id 1 in the masks, whatever its number was."
        )
    return names


def _is_counted(names: Sequence[str]) -> bool:
    """Whether the names begin with the numbers 0, 1, 2, ... or 1, 2, 3, ..."""
    numbers = [int(found[0].strip(" \t:.,;=-")) if (found := NUMBER.match(name)) else -1 for name in names]
    return len(names) > 1 and numbers in ([*range(len(names))], [*range(1, len(names) + 1)])
