"""Data sets in PASCAL VOC layout: VOC 2012, and any other folder in this layout."""

import copy
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ribseg.data.base import BaseDataset, Transform
from ribseg.data.io.images import read_image
from ribseg.data.io.label_forms import find_labels, read_labels
from ribseg.data.io.labels import FROM_MASKS, labels_from_masks, labels_from_xml
from ribseg.data.io.masks import read_mask
from ribseg.data.voc_layout import VOC_CLASSES as VOC_CLASSES
from ribseg.data.voc_layout import class_names, find_root, read_split
from ribseg.errors import ConfigError, DataError, list_problems
from ribseg.files import IMAGE_ENDINGS, scan_folder
from ribseg.store.contents import Contents

Files = dict[str, tuple[str, str]]  # image id -> folder, and the ending of the file's name


class VOCFolder(BaseDataset):
    """A split of a folder in VOC layout: images with image-level labels, and optionally masks.

    Args:
        root: folder with JPEGImages/, ImageSets/Segmentation/*.txt and, if needed, SegmentationClass/,
            Annotations/, classes.txt; or a folder that contains it as VOCdevkit/VOC2012 or VOC2012.
        split: name of a list, without `.txt`.
        classes: names without background, or a file with one name per line; None: classes.txt if it exists,
            else VOC's twenty.
        labels: "xml" (Annotations/), "mask" (the classes in the masks), the path of a file or folder (may be
            relative to root) of any form of `ribseg.data.io.label_forms`, "none" (no labels: VOC's test
            split), or "auto": the only one of these in root; masks where nothing else may be meant.
        transform: see `BaseDataset`.
        masks_dir: folder of the masks, below root or absolute.
        images_dir: folder of the images, below root or absolute, or several; .jpg, .jpeg or .png.
        lists_dir: folder of the lists, below root or absolute; one id a line.

    Attributes:
        root: Path of the folder with the images.
        split: as given.
        ids: list of image ids in the list's order.
        classes: tuple of names; `num_classes` is their number. Without background.
        labels: (N, C) bool ndarray.
        labels_source: where they come from.
        palette: (256, 3) uint8 RGB colours of class ids in masks.
        splits: names of all lists.
        contents: digests of files, for the fingerprint.

    An item is a `Sample`. Files are listed, not opened: `check_dataset` finds missing and broken ones.

    A forked worker gets its own copy of the ids that it reads: 27 MB for COCO's 120,000, half of the views of
    one image (measured in `tests/test_data_ids.py`).

    Raises:
        DatasetNotFoundError: if a folder or list is missing.
        DataError: if the list, the class names or the labels cannot be used; lists the problems.
    """

    contents = Contents()

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: Sequence[str] | str | Path | None = None,
        labels: str | Path = "auto",
        transform: Transform | None = None,
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
        self.splits, self.ids = read_split(self.root / lists_dir, split, self._images)
        self.classes = class_names(self.root, classes)
        self._masks = _scan_masks(self.masks_dir)
        self.labels, self.labels_source = self._read_labels(labels)

    def with_masks(self, masks_dir: str) -> "VOCFolder":
        """The same images and labels, shared, with masks from another folder, below root or absolute."""
        other = copy.copy(self)
        other.masks_dir = self.root / masks_dir
        other._masks = _scan_masks(other.masks_dir)
        return other

    @property
    def masks_source(self) -> str:  # type: ignore[override]  # other data sets set a text
        """The folder of the masks."""
        return f"{self.masks_dir.name}/" if self.masks_dir.is_dir() else f"no folder {self.masks_dir.name}/"

    @property
    def origin(self) -> str:
        """The root."""
        return str(self.root)

    def has_image(self, image_id: str) -> bool:
        """Whether there is an image file with this id."""
        return image_id in self._images

    def has_mask(self, image_id: str) -> bool:
        """Whether there is a mask file with this id."""
        return image_id in self._masks

    @property
    def image_ids(self) -> Collection[str]:
        """Ids of all image files, listed or not."""
        return self._images.keys()

    @property
    def mask_ids(self) -> Collection[str]:
        """Ids of all mask files, listed or not."""
        return self._masks.keys()

    def image_path(self, image_id: str) -> Path:
        """The file of an image; raises a DataError if it is missing."""
        return _path(self._images, image_id, self.images_dirs[0], IMAGE_ENDINGS)

    def mask_path(self, image_id: str) -> Path:
        """The file of a mask; raises a DataError if it is missing."""
        return _path(self._masks, image_id, self.masks_dir, (".png",))

    def image(self, image_id: str) -> np.ndarray:
        """The image: (H, W, 3) uint8 RGB; see `read_image`."""
        return read_image(self.image_path(image_id))

    def mask(self, image_id: str) -> np.ndarray:
        """The mask: (H, W) uint8 class ids, 0 background, 255 ignore; see `read_mask`."""
        return read_mask(self.mask_path(image_id), self.num_classes)

    def fingerprint(self, masks: bool = False) -> str:
        """sha256 over classes, ids, labels and the content of the image files; for masks also over theirs.

        Does not depend on the root. Looks at all files again at each call, but reads only those that may
        have changed since `contents` saw them.
        """
        digest = self._list_digest()
        for files in (self._images, self._masks) if masks else (self._images,):
            digest.update("\n".join(["", *self._digests(files)]).encode())
        return str(digest.hexdigest())

    def _digests(self, files: Files) -> list[str]:
        """The digests of the files of all ids; "absent" without one."""
        found = dict.fromkeys(self.ids, "absent")
        for folder in dict.fromkeys(place for place, _ in files.values()):
            there = {i: f"{i}{files[i][1]}" for i in self.ids if i in files and files[i][0] == folder}
            found |= dict(zip(there, self.contents.digests(folder, list(there.values())), strict=True))
        return list(found.values())

    def _read_labels(self, source: str | Path) -> tuple[np.ndarray, str]:
        """The labels, and where they come from."""
        annotations = self.root / "Annotations"
        if source == "auto":
            source = find_labels(self.root, self.masks_dir, self.classes)
        if source == "xml":
            return labels_from_xml(annotations, self.ids, self.classes), f"{annotations.name}/*.xml"
        if source == "mask":
            return labels_from_masks(self.masks_dir, self.ids, self.num_classes), FROM_MASKS
        if source == "none":
            return np.zeros((len(self.ids), self.num_classes), dtype=bool), "none"
        path = Path(source)
        if not path.suffix and not path.exists() and not Path(self.root, source).exists():
            known = "labels = auto, xml, mask, none or a path"
            raise ConfigError(f"expected {known}; {str(path)!r} is neither there nor in {self.root}")
        return read_labels(path if path.exists() else self.root / path, self.ids, self.classes)


def _scan_images(folders: Sequence[Path]) -> Files:
    found: Files = {}
    clashes = []
    for folder in folders:
        files = _scan(folder, IMAGE_ENDINGS)
        clashes += [f"image {i} is in {found[i][0]} and in {folder}" for i in files.keys() & found.keys()]
        found |= files
    if clashes:
        headline = "the folders of the images cannot be used"
        advice = "An id means one image: rename or remove one of each."
        raise DataError(list_problems(headline, {"ids in two folders": sorted(clashes)}, advice))
    return found


def _scan_masks(folder: Path) -> Files:
    # A test set has no masks; `mask_path` names this folder in its error.
    return _scan(folder, (".png",)) if folder.is_dir() else {}


def _scan(folder: Path, endings: tuple[str, ...]) -> Files:
    kinds: dict[str, tuple[str, str]] = {}  # a few tuples, shared by all files
    names = scan_folder(folder, endings)
    return {i: kinds.setdefault(name[len(i) :], (str(folder), name[len(i) :])) for i, name in names.items()}


def _path(files: Files, image_id: str, folder: Path, endings: tuple[str, ...]) -> Path:
    if image_id not in files:
        raise DataError(f"{folder / image_id} is absent (looked for {', '.join(endings)}).")
    place, ending = files[image_id]
    return Path(place, image_id + ending)
