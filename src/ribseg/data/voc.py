"""Data sets in PASCAL VOC layout: VOC 2012 itself, and any folder that looks like it."""

import copy
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ribseg.data.check.near_misses import without_ending
from ribseg.data.ids import Ids
from ribseg.data.io.files import FileTable, is_plain_id, read_lines, scan_folder
from ribseg.data.io.images import read_image
from ribseg.data.io.labels import labels_from_csv, labels_from_masks, labels_from_xml
from ribseg.data.io.masks import read_mask, voc_palette
from ribseg.errors import ConfigError, DataError, DatasetNotFoundError, list_problems

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
PNG_END = 20  # bytes: checksum of the pixels, that of their last chunk, and the closing chunk


class VOCFolder(Dataset[dict[str, Any]]):
    """Images with image-level labels, and masks where there are some.

    Args:
        root: folder with JPEGImages/, ImageSets/Segmentation/*.txt and, as far as needed, SegmentationClass/,
            Annotations/, classes.txt; or a folder that holds such a one as VOCdevkit/VOC2012 or VOC2012.
        split: name of a list, without `.txt`.
        classes: names without background, or a file with one name a line; None: classes.txt if there, else
            VOC's twenty.
        labels: "xml" (Annotations/), "mask" (the classes in the masks), the path of a CSV file (as such, or
            below root), "none" (no image has any: VOC's test split), or "auto": Annotations/ if there, else
            image_labels*.csv in root if exactly one, else masks.
        transform: called as `transform(image=array)["image"]`.
        masks_dir: folder of the masks, below root or absolute.
        images_dir: folder of the images, below root or absolute, or several; .jpg, .jpeg or .png.
        lists_dir: folder of the lists, below root or absolute. Of each line the first word counts.

    Attributes:
        root: Path of the folder with the images.
        split: as given.
        ids: image ids in the list's order; reads as a list, see `Ids`.
        classes: tuple of names; `num_classes` is their number. Without background.
        labels: (N, C) bool ndarray.
        palette: (256, 3) uint8 RGB colours of class ids in masks.
        splits: names of the lists that there are.

    An item is a dict of `id` (str), `image` (what the transform returns, else (H, W, 3) uint8) and `labels`
    (C,) float32. Files are looked for, not opened: `check_dataset` tells which are absent or broken.

    Nothing here is a Python object per image, so forked workers share it. An image has its labels (C bytes)
    and three times its id (list, image file, mask file) with 56 bytes in all: 217 bytes for one of COCO's, 26
    MB for 120,000, however many workers read them (`tests/test_data_ids.py` measures it).

    Raises:
        DatasetNotFoundError: if a folder or list is absent.
        DataError: if the list, the class names or the labels are unusable; lists what is wrong.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: Sequence[str] | str | Path | None = None,
        labels: str | Path = "auto",
        transform: Callable[..., dict[str, Any]] | None = None,
        masks_dir: str = "SegmentationClass",
        images_dir: str | Sequence[str] = "JPEGImages",
        lists_dir: str = "ImageSets/Segmentation",
    ) -> None:
        folders = (images_dir,) if isinstance(images_dir, str) else tuple(images_dir)
        self.root = find_root(root, folders, lists_dir)
        self.split, self.transform = split, transform
        self.images_dirs = tuple(self.root / folder for folder in folders)
        self.masks_dir = self.root / masks_dir
        self._images = _scan_images(self.images_dirs)
        self.splits, self.ids = _read_split(self.root / lists_dir, split, self._images)
        self.classes = _class_names(self.root, classes)
        self.palette = voc_palette()
        self._masks = _scan_masks(self.masks_dir)
        self.labels = self._read_labels(labels)

    @property
    def num_classes(self) -> int:
        """C, without background."""
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_id = self.ids[index]
        image: np.ndarray | Tensor = self.image(image_id)
        if self.transform is not None:
            image = self.transform(image=image)["image"]
        return {"id": image_id, "image": image, "labels": torch.from_numpy(self.labels[index]).float()}

    def with_transform(self, transform: Callable[..., dict[str, Any]] | None) -> "VOCFolder":
        """The same data, shared, under another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def with_masks(self, masks_dir: str) -> "VOCFolder":
        """The same images and labels, shared, with masks from another folder, below root or absolute."""
        other = copy.copy(self)
        other.masks_dir = self.root / masks_dir
        other._masks = _scan_masks(other.masks_dir)
        return other

    def without(self, ids: Collection[str]) -> "VOCFolder":
        """The same data without some of its images."""
        other, dropped = copy.copy(self), set(ids)
        kept = np.array([image_id not in dropped for image_id in self.ids], dtype=bool)
        other.ids = Ids(image_id for image_id in self.ids if image_id not in dropped)
        other.labels = self.labels[kept]
        return other

    def index(self, image_id: str) -> int:
        """Row of an image in `ids` and `labels`; raises DataError if it is not in the split."""
        row = self.ids.find(image_id)
        if row < 0:
            raise DataError(f"image {image_id!r} is not in the split {self.split!r} of {self.root}.")
        return row

    def has_image(self, image_id: str) -> bool:
        """Whether there is an image file of this id."""
        return image_id in self._images

    def has_mask(self, image_id: str) -> bool:
        """Whether there is a mask file of this id."""
        return image_id in self._masks

    @property
    def image_ids(self) -> Ids:
        """Ids of all image files that there are, listed or not."""
        return self._images.ids

    @property
    def mask_ids(self) -> Ids:
        """Ids of all mask files that there are."""
        return self._masks.ids

    def image_path(self, image_id: str) -> Path:
        """Path of an image; raises DataError if it is absent."""
        return Path(_file(self._images, image_id, self.images_dirs, IMAGE_ENDINGS))

    def mask_path(self, image_id: str) -> Path:
        """Path of a mask; raises DataError if it is absent."""
        return Path(_file(self._masks, image_id, (self.masks_dir,), (".png",)))

    def image(self, image_id: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB; see `read_image`."""
        # No Path: each leaves its parts in Python's table of names, which a worker would have to copy.
        return read_image(_file(self._images, image_id, self.images_dirs, IMAGE_ENDINGS))

    def mask(self, image_id: str) -> np.ndarray:
        """(H, W) uint8 class ids, 0 background, 255 ignore; see `read_mask`."""
        return read_mask(_file(self._masks, image_id, (self.masks_dir,), (".png",)), self.num_classes)

    def fingerprint(self, masks: bool = False) -> str:
        """sha256 over classes, ids, labels and the sizes of the image files in bytes.

        Of masks their last bytes count, too, where a PNG has checksums of its pixels: a mask that was mended
        often keeps its size. Reads nothing else; does not depend on where the root is. An absent file counts
        as size -1.
        """
        digest = hashlib.sha256("\n".join([*self.classes, "", *self.ids]).encode())
        digest.update(np.packbits(self.labels).tobytes())
        digest.update(_sizes(self._images, self.images_dirs, self.ids))
        if masks:
            digest.update(b"masks" + _sizes(self._masks, (self.masks_dir,), self.ids))
            digest.update(_ends(self._masks, self.masks_dir, self.ids))
        return digest.hexdigest()

    def plot(self, sample: dict[str, Any]) -> "Figure":
        """Draws an item with the names of its classes, and its mask beside it if there is one.

        Args:
            sample: what `__getitem__` returns; a normalised image is stretched to the full range.
        """
        from matplotlib.figure import Figure

        panels = [_displayable(sample["image"])]
        if sample["id"] in self._masks:
            panels.append(self.palette[self.mask(sample["id"])])
        figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
        for axis, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            axis.imshow(panel)
            axis.axis("off")
        names = [name for name, here in zip(self.classes, sample["labels"].tolist(), strict=True) if here]
        figure.suptitle(f"{sample['id']}: {', '.join(names) or 'no label'}")
        return figure

    def _read_labels(self, source: str | Path) -> np.ndarray:
        annotations, tables = self.root / "Annotations", sorted(self.root.glob("image_labels*.csv"))
        if source == "auto":
            source = "xml" if annotations.is_dir() else tables[0] if len(tables) == 1 else "mask"
        if source == "xml":
            return labels_from_xml(annotations, self.ids, self.classes)
        if source == "mask":
            return labels_from_masks(self.masks_dir, self.ids, self.num_classes)
        if source == "none":
            return np.zeros((len(self.ids), self.num_classes), dtype=bool)
        if Path(source).suffix.lower() != ".csv":
            raise ConfigError(
                f"expected labels = auto, xml, mask, none or the path of a .csv file, found {str(source)!r}."
            )
        path = Path(source)
        return labels_from_csv(path if path.is_file() else self.root / path, self.ids, self.classes)


def find_root(root: str | Path, images_dirs: Sequence[str], lists_dir: str) -> Path:
    """Finds the folder in VOC layout: root itself, or VOCdevkit/VOC2012 or VOC2012 below it.

    Raises:
        DatasetNotFoundError: if none of them has both the images' and the lists' folders.
    """
    needed = (*images_dirs, lists_dir)
    candidates = [Path(root), Path(root) / "VOCdevkit" / "VOC2012", Path(root) / "VOC2012"]
    for candidate in candidates:
        if all((candidate / folder).is_dir() for folder in needed):
            return candidate
    expected = [f"{folder}/" for folder in needed]
    tried = {
        "looked in": [
            f"{folder}: " + ("no such folder" if not folder.is_dir() else f"no {' or no '.join(expected)}")
            for folder in candidates
        ]
    }
    headline = f"no data set in VOC layout at {root}: expected the folders {' and '.join(expected)}"
    raise DatasetNotFoundError(list_problems(headline, tried, "Set data.root to the folder that holds them."))


def _scan_images(folders: Sequence[Path]) -> FileTable:
    """Image id -> which folder, and the file's name."""
    found: dict[str, tuple[int, str]] = {}
    clashes = []
    for number, folder in enumerate(folders):
        for image_id, name in scan_folder(folder, IMAGE_ENDINGS).items():
            if image_id in found:
                clashes.append(f"image {image_id} is in {folders[found[image_id][0]]} and in {folder}")
            found[image_id] = number, name
    if clashes:
        headline = "the folders of the images cannot be used"
        advice = "An id means one image: rename or remove one of each."
        raise DataError(list_problems(headline, {"ids in two folders": sorted(clashes)}, advice))
    return FileTable(found)


def _read_split(folder: Path, split: str, images: FileTable) -> tuple[tuple[str, ...], Ids]:
    """Names of all lists, and the ids of one of them."""
    lists = scan_folder(folder, (".txt",))
    splits = tuple(sorted(lists))
    if split not in lists:
        raise DatasetNotFoundError(
            f"no list of the split {split!r}: expected {folder / split}.txt. Lists that there are: "
            f"{', '.join(splits) or 'none'}."
        )
    path = folder / lists[split]
    lines = read_lines(path)
    ids = [line.split()[0] for line in lines]
    if not ids:
        raise DataError(f"the split {split!r} is empty: {path} names no image. Expected one image id a line.")
    problems: dict[str, list[str]] = {}
    for number, (line, image_id) in enumerate(zip(lines, ids, strict=True), 1):
        kind = _problem_of_line(line, image_id, images)
        if kind:
            problems.setdefault(kind, []).append(f"entry {number}: {line!r}")
    if SPACES not in problems:  # of ids that hold spaces several begin alike
        rows = _repeated(ids)
        problems |= {"named twice": [f"entry {row + 1}: {lines[row]}" for row in rows]} if rows else {}
    if problems:
        several = any(len(lines[row].split()) > 1 for row in _repeated(ids))
        advice = "An id is the image's file name without ending and without folder; name each once."
        if SPACES in problems or several:
            advice += (
                " Lists in VOC layout separate columns by spaces, so only the first word of a line is the "
                "id: if file names hold spaces, rename the files (underscores, for example) and the ids in "
                "all lists."
            )
        raise DataError(list_problems(f"{path} cannot be used", problems, advice))
    return splits, Ids(ids)


SPACES = "ids with spaces"


def _problem_of_line(line: str, image_id: str, images: FileTable) -> str | None:
    """The kind of what is wrong with a line of a list and its first word."""
    if line != image_id and (line in images or without_ending(line) in images):
        return SPACES
    if not is_plain_id(image_id):
        return "no plain file name"
    stem = without_ending(image_id)
    if stem != image_id and stem in images and image_id not in images:
        return "ids with an ending (write x, not x.jpg)"
    return None


def _repeated(ids: Sequence[str]) -> list[int]:
    """Rows of ids that a row before them has."""
    seen: set[str] = set()
    rows = []
    for row, image_id in enumerate(ids):
        if image_id in seen:
            rows.append(row)
        seen.add(image_id)
    return rows


def _class_names(root: Path, classes: Sequence[str] | str | Path | None) -> tuple[str, ...]:
    path = root / (classes if isinstance(classes, str | Path) else "classes.txt")
    source = "classes"
    if isinstance(classes, str | Path) or (classes is None and path.is_file()):
        classes, source = read_lines(path), str(path)
    names = VOC_CLASSES if classes is None else tuple(classes)
    if not 1 <= len(names) <= 254 or len(set(names)) < len(names):
        double = sorted({name for name in names if names.count(name) > 1})
        raise DataError(
            f"{source}: expected 1 to 254 different names, found {len(names)}; named twice: {double[:5]}."
        )
    bare = [NUMBER.sub("", name) for name in names]
    for listed in (names, bare):
        marks = [name for name in listed if name.strip("_ ").lower() in ("background", "ignore")]
        if marks:
            raise DataError(
                f"{source} names {' and '.join(marks)}. Leave it out: id 0 is background, the first name is "
                "id 1, and 255 in a mask is to be ignored."
            )
    if bare != list(names) and "" not in bare and len(set(bare)) == len(bare) and _is_counted(names):
        raise DataError(
            f"{source} has numbers in front of its names: {', '.join(names[:3])}. Write the names alone, one "
            "a line: the first is id 1 in the masks, whatever number stood there."
        )
    return names


NUMBER = re.compile(r"^\s*\d+[\s:.,;=-]+")


def _is_counted(names: Sequence[str]) -> bool:
    """Whether names begin with the numbers 0, 1, 2, ... or 1, 2, 3, ...; as ids do."""
    numbers = [int(found[0].strip(" \t:.,;=-")) if (found := NUMBER.match(name)) else -1 for name in names]
    return len(names) > 1 and numbers in ([*range(len(names))], [*range(1, len(names) + 1)])


def _scan_masks(folder: Path) -> FileTable:
    # A test set has no masks; who asks for one learns where it was looked for.
    found = scan_folder(folder, (".png",)) if folder.is_dir() else {}
    return FileTable({image_id: (0, name) for image_id, name in found.items()})


def _file(files: FileTable, image_id: str, folders: Sequence[Path], endings: tuple[str, ...]) -> str:
    found = files.find(image_id)
    if found is None:
        raise DataError(f"{folders[0] / image_id} is absent (looked for {', '.join(endings)}).")
    return os.path.join(folders[found[0]], found[1])  # noqa: PTH118


def _sizes(files: FileTable, folders: Sequence[Path], ids: Iterable[str]) -> bytes:
    """Of each file its size in bytes, of an absent one -1."""
    places = [os.fspath(folder) for folder in folders]  # 100,000 paths are slower to make than to ask for
    found = map(files.find, ids)
    sizes = [
        -1 if file is None else os.stat(f"{places[file[0]]}/{file[1]}").st_size  # noqa: PTH116
        for file in found
    ]
    return np.asarray(sizes, dtype="<i8").tobytes()


def _ends(files: FileTable, folder: Path, ids: Iterable[str]) -> bytes:
    """Of each file its last bytes, of an absent one nothing."""
    ends = []
    for found in map(files.find, ids):
        if found is not None:
            with (folder / found[1]).open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(file.tell() - PNG_END, 0))
                ends.append(file.read())
    return b"".join(ends)


def _displayable(image: np.ndarray | Tensor) -> np.ndarray:
    """(H, W, 3) array that imshow takes, from a uint8 array or a (3, H, W) float tensor of any range."""
    if isinstance(image, np.ndarray):
        return image
    array = image.float().permute(1, 2, 0).numpy()
    low, high = array.min(), array.max()
    return (array - low) / max(float(high - low), 1e-6)
