"""The protocol of data sets, and a base class with defaults."""

import copy
import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from ribseg.data.io.images import ImageHeader, check_pixels, read_header
from ribseg.data.io.masks import IGNORE, voc_palette
from ribseg.errors import ConfigError, DataError
from ribseg.types import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor
    from torch.utils.data import Dataset

    Items = Dataset[Sample]
else:  # torch's class adds nothing to these, and `ribseg check` starts without torch
    Items = object

BACKGROUND, IGNORED = "background", ("ignore", "ignored", "void", "unlabeled")
Transform = Callable[..., dict[str, Any]]
Self = TypeVar("Self", bound="BaseDataset")


@runtime_checkable
class ImageDataset(Protocol):
    """One split of images with image-level labels, and optionally masks.

    The `_target_` of `data.dataset` is called with `split="train"` and so on. `BaseDataset` has defaults for
    masks and fingerprint. Data sets must be picklable, for worker processes.
    """

    @property
    def ids(self) -> Sequence[str]:
        """N different ids that can be file names (see `is_plain_id`)."""

    @property
    def classes(self) -> Sequence[str]:
        """C names, without background."""

    @property
    def labels(self) -> np.ndarray:
        """(N, C) bool, rows in the order of `ids`."""

    def image(self, image_id: str) -> np.ndarray:
        """The image: (H, W, 3) uint8 RGB; raises a DataError if it is broken. Must be thread-safe."""

    def has_mask(self, image_id: str) -> bool:
        """Whether the image has a mask."""

    def mask(self, image_id: str) -> np.ndarray:
        """The mask: (H, W) uint8, 0 background, c + 1 class c, 255 ignore; DataError if missing or broken."""

    def fingerprint(self, masks: bool = False) -> str:
        """A text that changes if classes, ids, labels, images (or masks) do; part of the stages' digests."""


class BaseDataset(Items):
    """Base class of data sets: a subclass sets `ids`, `classes` and `labels`, and defines `image`.

    An item is a `Sample` of `id`, `image` (transformed, or (H, W, 3) uint8) and `labels` (C,) float32.

    Attributes:
        split: name of the list of images.
        transform: called as `transform(image=array)["image"]`; None leaves the array.
        palette: (256, 3) uint8 RGB colours of class ids in masks.
        labels_source: where the labels come from, in words.
        masks_source: where the masks come from.
    """

    ids: Sequence[str]
    classes: tuple[str, ...]
    labels: np.ndarray
    split: str = ""
    labels_source: str = "the data set"
    masks_source: str = "the data set"
    transform: Transform | None = None
    _rows: dict[str, int] | None = None
    _fingerprint: tuple[bool, str] | None = None

    def image(self, image_id: str) -> np.ndarray:
        """See `ImageDataset`."""
        raise NotImplementedError

    def has_mask(self, image_id: str) -> bool:
        """See `ImageDataset`; none by default."""
        return False

    def mask(self, image_id: str) -> np.ndarray:
        """See `ImageDataset`; none by default."""
        raise DataError(f"{self.origin} has no mask of the image {image_id!r}.")

    def fingerprint(self, masks: bool = False) -> str:
        """sha256 over classes, ids, labels and all pixels, computed once.

        For large data sets something cheaper will do, such as the content of files: see `VOCFolder`.
        """
        if self._fingerprint is None or self._fingerprint[0] != masks:
            digest = self._list_digest()
            for image_id in self.ids:
                digest.update(_bytes_of(self.image(image_id)))
                if masks and self.has_mask(image_id):
                    digest.update(_bytes_of(self.mask(image_id)))
            self._fingerprint = masks, digest.hexdigest()
        return self._fingerprint[1]

    def has_image(self, image_id: str) -> bool:
        """Whether the image exists; if True without a check, `image` raises."""
        return True

    def image_path(self, image_id: str) -> Path | None:
        """The file of an image, whose header has its size; None without a file."""
        return None

    def mask_path(self, image_id: str) -> Path | None:
        """The file of a mask, whose header has its size; None without a file."""
        return None

    def with_masks(self: Self, masks_dir: str) -> Self:
        """The same images with masks from another folder; only data sets in VOC layout support it."""
        raise ConfigError(
            f"no masks can be read from {masks_dir}: {self.origin} reads them with `mask(image_id)`, from no "
            "folder. Leave segmenter.masks_dir out"
        )

    @property
    def origin(self) -> str:
        """Where the images come from, for messages."""
        return type(self).__name__

    @property
    def num_classes(self) -> int:
        """Number of classes C, without background."""
        return len(self.classes)

    @property
    def palette(self) -> np.ndarray:
        """The (256, 3) uint8 RGB colours of class ids; VOC's by default."""
        return voc_palette()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        import torch

        image: np.ndarray | Tensor = self.image(self.ids[index])
        if self.transform is not None:
            image = self.transform(image=image)["image"]
        return Sample(self.ids[index], image, torch.from_numpy(self.labels[index]).float())

    def with_transform(self: Self, transform: Transform | None) -> Self:
        """The same data with another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def without(self: Self, ids: Collection[str]) -> Self:
        """The same data without some of its images."""
        other, dropped = copy.copy(self), set(ids)
        kept = [image_id not in dropped for image_id in self.ids]
        other.ids = [image_id for image_id, keep in zip(self.ids, kept, strict=True) if keep]
        other.labels = self.labels[np.array(kept, dtype=bool)]
        other._rows = other._fingerprint = None
        return other

    def index(self, image_id: str) -> int:
        """Row of an image in `ids` and `labels`; raises DataError if it is not in the split."""
        if self._rows is None:
            self._rows = {known: row for row, known in enumerate(self.ids)}
        row = self._rows.get(image_id)
        if row is None:
            raise DataError(f"image {image_id!r} is not in the split {self.split!r} of {self.origin}.")
        return row

    def has_class(self, image_id: str) -> bool:
        """Whether an image has a label."""
        return bool(self.labels[self.index(image_id)].any())

    def header(self, image_id: str) -> ImageHeader:
        """The size of an image, for a file read from its header."""
        path = self.image_path(image_id)
        if path is not None:
            return read_header(path)
        height, width, _ = check_pixels(self.image(image_id), f"image {image_id}").shape
        return ImageHeader((height, width), (height, width))

    def size(self, image_id: str) -> tuple[int, int]:
        """(height, width) in pixels; for a file read from its header."""
        return self.header(image_id).size

    def plot(self, sample: Sample) -> "Figure":
        """A figure of an item with its class names, and its mask if there is one.

        Args:
            sample: an item; a normalised image is stretched to the full range.
        """
        from matplotlib.figure import Figure

        panels = [_displayable(sample.image)]
        if self.has_mask(sample.id):
            panels.append(self.palette[self.mask(sample.id)])
        figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
        for axis, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            axis.imshow(panel)
            axis.axis("off")
        names = [name for name, here in zip(self.classes, sample.labels.tolist(), strict=True) if here]
        figure.suptitle(f"{sample.id}: {', '.join(names) or 'no label'}")
        return figure

    def _list_digest(self) -> Any:
        """A sha256 object over classes, ids and labels, to be continued."""
        digest = hashlib.sha256("\n".join([*self.classes, "", *self.ids]).encode())
        digest.update(np.packbits(self.labels).tobytes())
        return digest


def check_classes(names: Sequence[str], source: str) -> None:
    """Raises a DataError unless these are 1 to 254 different names."""
    if not 1 <= len(names) <= 254 or len(set(names)) < len(names):
        double = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"{source}: expected 1 to 254 names, found {len(names)}; named twice: {double[:5]}.")


def special(name: str) -> int | None:
    """The id that a name in a list of labels stands for: 0 background, 255 ignore; None for a class.

    >>> special("_background_"), special("void"), special("cat")
    (0, 255, None)
    """
    plain = name.strip("_ ").lower()
    return 0 if plain == BACKGROUND else IGNORE if plain in IGNORED else None


def check_names(names: Sequence[str], source: str) -> None:
    """Raises a DataError unless these are names of classes alone, see `check_classes`: no background."""
    check_classes(names, source)
    marks = [name for name in names if special(name) is not None]
    if marks:
        raise DataError(
            f"{source} names {' and '.join(marks)}. Leave it out: id 0 is background, the first name is "
            "id 1, and 255 in a mask is to be ignored."
        )


def _bytes_of(array: np.ndarray) -> bytes:
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()


def _displayable(image: "np.ndarray | Tensor") -> np.ndarray:
    """An (H, W, 3) array for imshow, from a uint8 array or a (3, H, W) float tensor of any range."""
    if isinstance(image, np.ndarray):
        return image
    array = image.float().permute(1, 2, 0).numpy()
    low, high = array.min(), array.max()
    return (array - low) / max(float(high - low), 1e-6)
