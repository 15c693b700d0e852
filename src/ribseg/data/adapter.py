"""Writing any iterable data set in VOC layout: torchvision's, Hugging Face's, or one's own."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ribseg.data.io.images import check_pixels, upright_rgb
from ribseg.data.io.labels import read_label_csv, write_label_csv
from ribseg.data.io.masks import IGNORE, write_mask
from ribseg.errors import DataError
from ribseg.files import atomic_file, atomic_write
from ribseg.progress import track

LISTS, LABELS = "ImageSets/Segmentation", "image_labels.csv"


def write_voc_tree(
    samples: Iterable[tuple[Any, Any] | tuple[Any, Any, Any]],
    target: str | Path,
    split: str,
    classes: Sequence[str],
    prefix: str | None = None,
    progress: bool | str = False,
) -> Path:
    """Writes a split in VOC layout, for `data.root=TARGET experiment=rib_folder`; returns the target.

    Call it once per split with the same target. An interrupted call can be repeated: it writes all files
    again. Spaces in class names become underscores.

    Args:
        samples: (image, labels) or (image, labels, mask). `image` is a PIL image of any mode (its EXIF
            orientation is applied) or an (H, W, 3) uint8 array; `labels` a class index from 0, a class name,
            several of either, or a (C,) vector of zeros and ones (any sequence that can be such a vector is
            taken as one, but never a set); `mask` (H, W) integers (0 background, c + 1 class c, 255 ignore),
            a PIL image of these, or None.
        target: folder in VOC layout; is created.
        split: name of the list: train, val, ...
        classes: C names, without background.
        prefix: of the image ids, followed by a number; None for the split's name.
        progress: how progress is shown, see `ribseg.progress.check_progress`.

    Raises:
        DataError: a sample does not have this form, or names an unknown class; gives its number.

    >>> # dataset = torchvision.datasets.Flowers102(root, split="train")       # (image, index)
    >>> # write_voc_tree(dataset, "flowers", "train", names)
    >>> # rows = datasets.load_dataset(...)["train"]                            # Hugging Face
    >>> # write_voc_tree(((row["image"], row["label"]) for row in rows), "data", "train", names)
    """
    target, names = Path(target), ["_".join(name.split()) for name in classes]
    rows: dict[str, list[str]] = {}
    for number, sample in enumerate(track(samples, f"Writing {split}", show=progress)):
        image_id = f"{prefix or split}_{number:06d}"
        if not isinstance(sample, tuple | list) or len(sample) not in (2, 3):
            raise DataError(f"sample {number}: expected (image, labels) or (image, labels, mask)")
        mask = sample[2] if len(sample) == 3 else None
        rows[image_id] = [names[c] for c in _indices(sample[1], classes, number)]
        size = _write_image(target / "JPEGImages" / f"{image_id}.png", sample[0], number)
        if mask is not None:
            _write_mask(target / "SegmentationClass" / f"{image_id}.png", mask, size, len(names), number)
    if not rows:
        raise DataError(f"the split {split!r} has no sample")
    atomic_write(target / LISTS / f"{split}.txt", "\n".join(rows).encode())
    atomic_write(target / "classes.txt", "\n".join(names).encode())
    before = read_label_csv(target / LABELS) if (target / LABELS).is_file() else {}  # of other splits
    write_label_csv(target / LABELS, before | rows)
    return target


def _indices(labels: Any, classes: Sequence[str], number: int) -> list[int]:
    """Class indices of a sample, ascending."""
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray | np.generic) else labels
    if not isinstance(values, list | tuple | set):
        values = [values]
    values = list(values)
    several = len(values) == len(classes) > 1 and all(value in (0, 1) for value in values)
    if several and not isinstance(labels, set):
        values = [c for c, value in enumerate(values) if value]
    found = {classes.index(v) if isinstance(v, str) and v in classes else v for v in values}
    wrong = [v for v in found if isinstance(v, bool) or not isinstance(v, int) or not 0 <= v < len(classes)]
    if wrong:
        raise DataError(f"sample {number}: expected indices 0..{len(classes) - 1} or names, got {wrong[:5]}")
    return sorted(found)


def _write_image(path: Path, image: Any, number: int) -> tuple[int, ...]:
    pil = isinstance(image, Image.Image)
    array = upright_rgb(image, f"sample {number}") if pil else np.asarray(image)
    check_pixels(array, f"sample {number}, taken without a transform")
    with atomic_file(path) as file:
        Image.fromarray(array).save(file, format="PNG")  # lossless
    return array.shape[:2]


def _write_mask(path: Path, mask: Any, size: tuple[int, ...], classes: int, number: int) -> None:
    array = np.asarray(mask)
    wrong = array.dtype.kind not in "iu" or array.ndim != 2 or array.size == 0
    if wrong or ((array > classes) & (array != IGNORE)).any() or array.min() < 0:
        raise DataError(f"sample {number}: expected a mask (H, W) of 0..{classes} and 255 for ignore")
    if array.shape != size:
        raise DataError(f"sample {number}: expected a mask of the image's (H, W) {size}, got {array.shape}")
    write_mask(path, array)
