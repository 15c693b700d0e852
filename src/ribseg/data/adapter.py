"""Writing any iterable data set in VOC layout: torchvision's, Hugging Face's, or one's own."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image
from torch import Tensor

from ribseg.checks import check_choice
from ribseg.data.io.images import check_pixels, read_image, upright_rgb
from ribseg.data.io.labels import read_label_csv, write_label_csv
from ribseg.data.io.masks import IGNORE, write_mask
from ribseg.errors import DataError
from ribseg.files import IMAGE_ENDINGS, atomic_file, atomic_write, is_plain_id, read_lines
from ribseg.progress import track

Form = Literal["indices", "vectors"]
LISTS, LABELS = "ImageSets/Segmentation", "image_labels.csv"


def write_voc_tree(
    samples: Iterable[tuple[Any, Any] | tuple[Any, Any, Any]],
    target: str | Path,
    split: str,
    classes: Sequence[str],
    prefix: str | None = None,
    progress: bool | str = False,
    ids: Iterable[str] | None = None,
    form: Form | None = None,
) -> Path:
    """Writes a split in VOC layout, for `data.root=TARGET experiment=rib_folder`; returns the target.

    Call it once per split with the same target. An interrupted call can be repeated: it writes all files
    again. Spaces in class names become underscores.

    Args:
        samples: (image, labels) or (image, labels, mask). `image` is the path of a file, which keeps its name
            as id and, if it is JPEG or PNG, its bytes; a PIL image of any mode (its EXIF orientation is
            applied); or an (H, W, 3) uint8 array. `labels` are a class index from 0, a class name, several of
            either, or a (C,) vector of zeros and ones; `mask` (H, W) integers (0 background, c + 1 class c,
            255 ignore),
            a PIL image of these, or None.
        target: folder in VOC layout; is created.
        split: name of the list: train, val, ...
        classes: C names, without background.
        prefix: of the ids of images without a path, followed by a number; None for the split's name.
        progress: how progress is shown, see `ribseg.progress.check_progress`.
        ids: of the images, in the order of the samples; None for names of files, or prefix and number.
        form: whether labels that are sequences hold "indices" or are "vectors", in all samples; None where
            each can be only one of them.

    Raises:
        DataError: a sample does not have this form, names an unknown class, or has labels that can be read as
            indices and as a vector; gives its number.

    >>> # dataset = torchvision.datasets.Flowers102(root, split="train")       # (image, index)
    >>> # write_voc_tree(dataset, "flowers", "train", names)
    >>> # rows = datasets.load_dataset(...)["train"]                            # Hugging Face
    >>> # write_voc_tree(((row["image"], row["label"]) for row in rows), "data", "train", names)
    """
    target, names = Path(target), ["_".join(name.split()) for name in classes]
    check_choice("form", form or "indices", get_args(Form))
    others = _before(target, split, names)
    rows: dict[str, list[str]] = {}
    given = None if ids is None else iter(ids)
    for number, sample in enumerate(track(samples, f"Writing {split}", show=progress)):
        if not isinstance(sample, tuple | list) or len(sample) not in (2, 3):
            raise DataError(f"sample {number}: expected (image, labels) or (image, labels, mask)")
        stem = (
            Path(sample[0]).stem if isinstance(sample[0], str | Path) else f"{prefix or split}_{number:06d}"
        )
        image_id = stem if given is None else str(next(given, ""))
        if image_id in others:
            raise DataError(
                f"sample {number}: {image_id!r} is in the list {others[image_id]}.txt already; name ids="
            )
        if not is_plain_id(image_id) or image_id in rows:
            raise DataError(f"sample {number}: expected an id of its own, without spaces, found {image_id!r}")
        indices, form = _indices(sample[1], classes, number, form)
        rows[image_id] = [names[c] for c in indices]
        size = _write_image(target / "JPEGImages" / image_id, sample[0], number)
        if len(sample) == 3 and sample[2] is not None:
            _write_mask(target / "SegmentationClass" / f"{image_id}.png", sample[2], size, len(names), number)
    if not rows:
        raise DataError(f"the split {split!r} has no sample")
    atomic_write(target / LISTS / f"{split}.txt", "\n".join(rows).encode())
    atomic_write(target / "classes.txt", "\n".join(names).encode())
    before = read_label_csv(target / LABELS) if (target / LABELS).is_file() else {}  # of other splits
    write_label_csv(target / LABELS, before | rows)
    return target


def _before(target: Path, split: str, names: Sequence[str]) -> dict[str, str]:
    """Id -> the other split that has it; a DataError if the folder is of other classes."""
    classes = target / "classes.txt"
    if classes.is_file() and read_lines(classes) != list(names):
        raise DataError(f"{classes} has the names {read_lines(classes)[:8]}, but these are {list(names)[:8]}")
    lists = [path for path in (target / LISTS).glob("*.txt") if path.stem != split]
    return {image_id: path.stem for path in lists for image_id in read_lines(path)}


def _indices(
    labels: Any, classes: Sequence[str], number: int, form: Form | None
) -> tuple[list[int], Form | None]:
    """Class indices of a sample, ascending, and the form of this sample and all before it."""
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray | np.generic) else labels
    several = isinstance(values, list | tuple | set)
    values = list(values) if several else [values]
    found = [classes.index(v) if isinstance(v, str) and v in classes else v for v in values]
    high = len(classes)
    wrong = [v for v in found if isinstance(v, bool) or not isinstance(v, int) or not 0 <= v < high]
    fits: list[Form] = [] if wrong or len(set(found)) < len(found) else ["indices"]
    if several and not isinstance(labels, set) and len(values) == high and set(values) <= {0, 1}:
        fits.append("vectors")
    if any(isinstance(v, str) for v in values) and not wrong:
        return sorted(set(found)), form
    if len(fits) == 2 and form is None:
        raise DataError(
            f"sample {number}: {values} can be a vector of zeros and ones, and indices of classes. Say: "
            'form="vectors" or form="indices"'
        )
    if not fits:
        raise DataError(
            f"sample {number}: expected indices 0..{high - 1}, names, or {high} zeros and ones, got "
            f"{(wrong or values)[:5]}"
        )
    if form is not None and form not in fits:
        raise DataError(f"sample {number}: expected {form} as labels, as of all samples, got {values[:5]}")
    form = form or fits[0]
    return sorted(found) if form == "indices" else [c for c, value in enumerate(values) if value], form


def _write_image(path: Path, image: Any, number: int) -> tuple[int, ...]:
    """Writes an image under its id and the ending of its kind; returns its height and width."""
    for other in IMAGE_ENDINGS:
        path.with_name(path.name + other).unlink(missing_ok=True)  # of an earlier call, of another kind
    if isinstance(image, str | Path):
        source, ending = Path(image), Path(image).suffix.lower()
        array = read_image(source)
        if ending in IMAGE_ENDINGS:
            atomic_write(path.with_name(path.name + ending), source.read_bytes())
            return array.shape[:2]
    elif isinstance(image, Image.Image):
        array = upright_rgb(image, f"sample {number}")
    else:
        array = np.asarray(image)
    check_pixels(array, f"sample {number}, taken without a transform")
    with atomic_file(path.with_name(path.name + ".png")) as file:
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
