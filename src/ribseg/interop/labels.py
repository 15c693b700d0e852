"""Image-level labels in the format of PSA, IRN and similar programs: one pickled `cls_labels.npy`.

It is `np.save` of a dictionary: image id -> (C,) zeros and ones. Ids are strings in PSA's file and numbers in
IRN's: 2007000032 for VOC's 2007_000032, 57870 for COCO's 000000057870.
"""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import numpy as np

from ribseg.data.io.label_forms import by_id, parse_labels
from ribseg.data.io.labels import write_label_csv
from ribseg.data.voc import VOC_CLASSES
from ribseg.errors import DataError, list_problems
from ribseg.interop.unpickle import read_pickled_arrays

VOC_DIGITS, COCO_DIGITS = 10, 12


def convert_labels(source: str | Path, target: str | Path, classes: Sequence[str] = VOC_CLASSES) -> int:
    """Converts a `cls_labels.npy`, or labels of any other form, to the CSV file for `data.labels`.

    Returns the number of images.

    Args:
        source: the `.npy` file, which `ribseg.interop.unpickle` reads safely; or any file or folder that
            `ribseg.data.io.label_forms` reads.
        target: the CSV file; must not exist.
        classes: C names in the order of the labels, without background and without spaces.

    Raises:
        DataError: the file is not of this format or these classes, or the target exists.
    """
    if Path(target).exists():
        raise DataError(f"{target} is there already. Remove it, or choose another name.")
    spaced = [name for name in classes if len(name.split()) != 1]
    if spaced:
        raise DataError(f"names of classes must hold no spaces, as {spaced[:5]} do; use underscores")
    read = _pickled_rows if Path(source).suffix == ".npy" else _rows_of_form
    rows = read(Path(source), classes)
    write_label_csv(target, rows)
    return len(rows)


def _pickled_rows(source: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """The rows of a `cls_labels.npy`."""
    labels = read_pickled_arrays(source)
    wrong = [f"{key}: {_shown(row)}" for key, row in labels.items() if not _fits(row, len(classes))]
    if wrong or not labels:
        headline = f"{source} holds no image-level labels of {len(classes)} classes"
        advice = "Expected image id -> zeros and ones, one for each class; name the classes in their order."
        raise DataError(list_problems(headline, {"not labels": wrong or ["no image"]}, advice))
    rows = {image_id(key): list(compress(classes, row)) for key, row in labels.items()}
    if len(rows) < len(labels):
        raise DataError(f"{source} has images twice, by number and by name. Make the file again.")
    return rows


def _rows_of_form(source: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """The rows of a file or folder of labels, with the ids of their file names."""
    rows, problems = by_id(parse_labels(source, classes), ())
    if problems:
        raise DataError(list_problems(f"{source} cannot be used", problems, "Correct these rows."))
    unknown = sorted({name for names in rows.values() for name in names} - set(classes))
    if unknown:
        raise DataError(f"{source} has classes that are not among the given ones: {unknown[:5]} (--names)")
    return rows


def image_id(key: str | int) -> str:
    """The image id for a key of the dictionary.

    >>> image_id(2007000032), image_id(57870), image_id("cat_1")
    ('2007_000032', '000000057870', 'cat_1')
    """
    if isinstance(key, str):
        return key
    digits = str(key)
    return f"{digits[:4]}_{digits[4:]}" if len(digits) == VOC_DIGITS else digits.zfill(COCO_DIGITS)


def _fits(row: np.ndarray, num_classes: int) -> bool:
    return row.shape == (num_classes,) and row.dtype.kind in "buif" and bool(np.isin(row, (0, 1)).all())


def _shown(row: np.ndarray) -> str:
    return f"{row.dtype} {row.shape}" + (f" of {row.min()} to {row.max()}" if row.size else "")
