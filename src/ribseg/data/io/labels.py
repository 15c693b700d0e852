"""Reading image-level labels from VOC's XML files, from masks, or from a CSV file."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ribseg.data.check.near_misses import explained, near_misses, with_reason
from ribseg.data.io.masks import IGNORE, mask_ids, read_mask
from ribseg.errors import DataError, DatasetNotFoundError, list_problems, reason
from ribseg.files import atomic_write, scan_folder
from ribseg.workers import io_threads, ordered_map

Problems = dict[str, list[str]]
FROM_MASKS = "the ground-truth masks"
TWICE = "images with two rows (expected one an image, with all its classes separated by spaces)"


def labels_from_xml(folder: str | Path, ids: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Labels from the `<name>` of every `<object>` (also difficult ones; no parts) in `<folder>/<id>.xml`.

    Args:
        folder: VOC's Annotations folder.
        ids: N image ids.
        classes: C names, without background.

    Returns:
        (N, C) bool, rows in the order of ids.

    Raises:
        DatasetNotFoundError: if the folder is missing.
        DataError: if files are missing or malformed or name unknown classes; lists them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetNotFoundError(
            f"no folder {folder} with the XML files of the image-level labels. Give labels=mask, or the path "
            "of a CSV file with the columns image,classes."
        )
    present = scan_folder(folder, (".xml",))
    problems: Problems = defaultdict(list)
    absent = [image_id for image_id in ids if image_id not in present]
    if absent:
        problems["images without an XML file"] = explained(absent, present)
    rows: dict[str, list[str]] = {}
    for image_id in [image_id for image_id in ids if image_id in present]:
        try:
            rows[image_id] = _xml_names(folder / present[image_id])
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
            problems["malformed XML files"].append(f"{present[image_id]}: {reason(error)}")
    return label_matrix(f"image-level labels from {folder}", rows, ids, classes, problems)


def labels_from_csv(path: str | Path, ids: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Labels from a CSV file with the columns `image` and `classes`: names separated by spaces, or empty.

    Rows of images that are not in ids are ignored.

    Args:
        path: UTF-8, with or without BOM.
        ids: N image ids.
        classes: C names, without background and without spaces.

    Returns:
        (N, C) bool, rows in the order of ids.

    Raises:
        DatasetNotFoundError: if the file is missing.
        DataError: if rows are missing, malformed or repeated, or name unknown classes; lists them.
    """
    path = Path(path)
    spaced = [name for name in classes if len(name.split()) != 1]
    if spaced:
        raise DataError(
            f"{path} separates classes by spaces, but the class names {spaced[:5]} hold spaces. Rename them "
            "in classes.txt (underscores, for example), or take the labels from the masks (labels=mask)."
        )
    problems: Problems = defaultdict(list)
    listed = set(ids)
    rows = _csv_rows(path, problems, listed)
    absent = [image_id for image_id in ids if image_id not in rows]
    if absent:
        others = (image_id for image_id in rows if image_id not in listed)
        problems["images without a row"] = explained(absent, others)
    return label_matrix(f"image-level labels from {path}", rows, ids, classes, problems)


def read_label_csv(path: str | Path) -> dict[str, list[str]]:
    """Image id -> class names, from a file of `write_label_csv`.

    Raises:
        DatasetNotFoundError: if the file is missing.
        DataError: lists malformed and repeated rows.
    """
    problems: Problems = defaultdict(list)
    rows = _csv_rows(Path(path), problems)
    if problems:
        raise DataError(list_problems(f"{path} cannot be used", problems, "Correct these rows."))
    return rows


def write_label_csv(path: str | Path, rows: Mapping[str, Sequence[str]]) -> None:
    """Writes a CSV file for `labels_from_csv`, atomically.

    Args:
        path: of the file.
        rows: image id -> class names, without spaces.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "classes"))
    writer.writerows((image_id, " ".join(names)) for image_id, names in rows.items())
    atomic_write(path, text.getvalue().encode())


def labels_from_masks(folder: str | Path, ids: Sequence[str], num_classes: int) -> np.ndarray:
    """Labels from the classes that occur in the masks `<folder>/<id>.png`; decodes all, in threads.

    Args:
        folder: VOC's SegmentationClass folder.
        ids: N image ids.
        num_classes: C, without background.

    Returns:
        (N, C) bool, rows in the order of ids.

    Raises:
        DatasetNotFoundError: if the folder is missing.
        DataError: if masks are missing or broken or have ids above num_classes; lists them.
    """
    folder = Path(folder)
    present = scan_folder(folder, (".png",))

    def row(image_id: str) -> np.ndarray | str:
        if image_id not in present:
            return f"{folder / image_id}.png is absent."
        try:
            found = mask_ids(read_mask(folder / present[image_id], num_classes))
        except DataError as error:
            return str(error)
        labels = np.zeros(num_classes, dtype=bool)
        labels[found[(found > 0) & (found < IGNORE)] - 1] = True
        return labels

    rows = list(ordered_map(row, ids, io_threads(), threads=True))
    bad = [item for item in rows if isinstance(item, str)]
    if bad:
        headline = f"labels from the masks in {folder}: {len(bad)} of {len(ids)} masks cannot be used"
        advice = "Complete or correct the masks, or take the labels from XML files or a CSV (labels=...)."
        raise DataError(list_problems(headline, {"masks": bad}, advice))
    return np.array(rows, dtype=bool).reshape(len(ids), num_classes)


def _xml_names(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    if root.tag != "annotation":
        # Any other document, such as an error page, would count as an image without objects.
        raise ValueError(f"expected <annotation> around everything, found <{root.tag[:50]}>")
    return [(item.findtext("name") or "").strip() for item in root.iter("object")]


def _csv_rows(path: Path, problems: Problems, listed: set[str] | None = None) -> dict[str, list[str]]:
    """Image id -> names; images that are not listed may have several rows, as they are not used."""
    rows: dict[str, list[str]] = {}
    for number, row in _csv_lines(path):
        image_id = (row["image"] or "").strip()
        if None in row or row["classes"] is None or not image_id:
            problems["malformed rows"].append(f"line {number}: {list(row.values())}"[:120])
        elif image_id in rows and (listed is None or image_id in listed):
            problems[TWICE].append(f"line {number}: {image_id}")
        else:
            rows[image_id] = row["classes"].split()
    return rows


def _csv_lines(path: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    """Line number and cells, by column name, of each row of a CSV file of labels."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [(name or "").strip() for name in reader.fieldnames or []]
            if not {"image", "classes"} <= set(header):
                found = ",".join(header)[:80]
                raise DataError(f"{path}: expected a first line `image,classes`, found `{found}`.")
            reader.fieldnames = header
            for row in reader:
                yield reader.line_num, row
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"label file {path} is absent: a CSV with `image,classes`") from error
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {reason(error)}. Save it again.") from error


def label_matrix(
    source: str, rows: dict[str, list[str]], ids: Sequence[str], classes: Sequence[str], problems: Problems
) -> np.ndarray:
    """The label matrix (N, C) of class names; raises one DataError for all problems."""
    column = {name: index for index, name in enumerate(classes)}
    labels = np.zeros((len(ids), len(classes)), dtype=bool)
    unknown: list[tuple[str, str]] = []
    for row, image_id in enumerate(ids):
        for name in rows.get(image_id, []):
            if name in column:
                labels[row, column[name]] = True
            else:
                unknown.append((name, image_id))
    if unknown:
        near = near_misses({name for name, _ in unknown}, classes)
        problems["unknown class names"] += [
            with_reason(f"{name[:80]!r} of image {image_id}", near.get(name) or _separator(name, column))
            for name, image_id in unknown
        ]
    if problems:
        known = ", ".join(classes[:25]) + (", ..." if len(classes) > 25 else "")
        advice = f"Known classes: {known}. Correct the labels, the list, or classes.txt (one name a line)."
        raise DataError(list_problems(f"{source} cannot be used", problems, advice))
    return labels


def _separator(name: str, known: Container[str]) -> str | None:
    """A hint if an unknown name is a number, or several class names; else None."""
    if name.isdigit():
        return "a number; expected names"
    parts = [part.strip() for part in re.split("[,;|/]", name) if part.strip()]
    if len(parts) > 1 and all(part in known for part in parts):
        return "several names; separate them by spaces"
    return None
