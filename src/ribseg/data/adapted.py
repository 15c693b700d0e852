"""An adapter that makes a user's data set a `BaseDataset`, with checks."""

import copy
from pathlib import Path

import numpy as np

from ribseg.data.base import BaseDataset, ImageDataset, check_classes
from ribseg.data.io.images import check_pixels
from ribseg.data.io.masks import check_mask
from ribseg.errors import ConfigError, DataError, list_problems
from ribseg.files import is_plain_id

MEMBERS = ("ids", "classes", "labels", "image", "has_mask", "mask", "fingerprint")


class AdaptedDataset(BaseDataset):
    """Any `ImageDataset` as a `BaseDataset`; lists are checked at once, images and masks when they are read.

    Args:
        source: the data set.
        split: its name.

    Raises:
        ConfigError: it lacks a required member.
        DataError: ids, classes or labels cannot be used; gives the reason.
    """

    def __init__(self, source: ImageDataset, split: str) -> None:
        absent = [name for name in MEMBERS if not hasattr(source, name)]
        if absent:
            raise ConfigError(
                f"{type(source).__name__} has no {' and no '.join(absent)}, which a data set needs (see "
                "ribseg.data.ImageDataset); ribseg.data.BaseDataset has defaults for masks and fingerprint"
            )
        self.source, self.split = source, split
        self.ids, self.classes, self.labels = list(source.ids), tuple(source.classes), source.labels
        check_classes(self.classes, f"{self.origin}.classes")
        self._check_lists()

    @property
    def origin(self) -> str:
        """Class name of the data set."""
        return type(self.source).__name__

    def image(self, image_id: str) -> np.ndarray:
        """See `ImageDataset`."""
        return check_pixels(self.source.image(image_id), f"image {image_id} of {self.origin}")

    def has_mask(self, image_id: str) -> bool:
        """See `ImageDataset`."""
        return self.source.has_mask(image_id)

    def mask(self, image_id: str) -> np.ndarray:
        """See `ImageDataset`."""
        name = f"mask of {image_id} of {self.origin}"
        return check_mask(self.source.mask(image_id), name, self.num_classes)

    def fingerprint(self, masks: bool = False) -> str:
        """sha256 over the data set's own fingerprint and the remaining ids."""
        digest = self._list_digest()
        digest.update(str(self.source.fingerprint(masks)).encode())
        return digest.hexdigest()

    def image_path(self, image_id: str) -> Path | None:
        """See `BaseDataset`."""
        return self.source.image_path(image_id) if isinstance(self.source, BaseDataset) else None

    def mask_path(self, image_id: str) -> Path | None:
        """See `BaseDataset`."""
        return self.source.mask_path(image_id) if isinstance(self.source, BaseDataset) else None

    def with_masks(self, masks_dir: str) -> "AdaptedDataset":
        """See `BaseDataset`."""
        if not isinstance(self.source, BaseDataset):
            return super().with_masks(masks_dir)
        other = copy.copy(self)
        other.source = self.source.with_masks(masks_dir)
        return other

    def has_image(self, image_id: str) -> bool:
        """See `BaseDataset`."""
        return self.source.has_image(image_id) if isinstance(self.source, BaseDataset) else True

    def _check_lists(self) -> None:
        problems: dict[str, list[str]] = {}
        for image_id in self.ids:
            if not isinstance(image_id, str) or not is_plain_id(image_id):
                problems.setdefault("ids that are no plain file names", []).append(repr(image_id))
        if len(set(self.ids)) < len(self.ids) or not self.ids:
            problems["number of ids"] = [f"{len(self.ids)}, different ones {len(set(self.ids))}"]
        labels, shape = self.labels, (len(self.ids), len(self.classes))
        if not isinstance(labels, np.ndarray) or labels.dtype != bool or labels.shape != shape:
            found = getattr(labels, "dtype", type(labels).__name__), getattr(labels, "shape", "")
            problems["labels"] = [f"expected an array {shape} of bool, found {found[0]} {found[1]}"]
        if problems:
            headline = f"the split {self.split!r} of {self.origin} cannot be used"
            raise DataError(list_problems(headline, problems, "See ribseg.data.ImageDataset."))
