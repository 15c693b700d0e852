"""What predictions read: the views of images at several scales, each with its mirror image."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ribseg.data.base import BaseDataset
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD, Channels, capped, check_pixels, rescale
from ribseg.errors import ConfigError, DataError
from ribseg.types import PredictItem

T = TypeVar("T")
SCALES = (1.0, 0.5, 1.5, 2.0)


def multi_scale_views(
    image: np.ndarray,
    scales: Sequence[float] = SCALES,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
) -> list[Tensor]:
    """The views of one image, as in the released programs of IRN and RIB.

    Args:
        image: (H, W, 3) uint8 RGB.
        scales: factors; each side becomes int(np.round(side * scale)), at least one pixel (bicubic, 8 bit).
            Scale 1 is not resampled.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].

    Returns:
        One (2, 3, h_s, w_s) float32 tensor per scale: row 0 the normalised image, row 1 its mirror image.

    Raises:
        ConfigError: if there is no scale, or one is not positive.
        DataError: if the image is of another shape or type.

    >>> [tuple(view.shape) for view in multi_scale_views(np.zeros((5, 8, 3), np.uint8), (1.0, 0.5))]
    [(2, 3, 5, 8), (2, 3, 2, 4)]
    """
    check_scales(scales)
    check_pixels(image, "the image")
    table = _normalisation(tuple(mean), tuple(std))
    return [_with_mirror(rescale(image, scale), table) for scale in scales]


def check_scales(scales: Sequence[float]) -> None:
    """Raises ConfigError if there is no scale, or one is not positive."""
    if not scales or min(scales) <= 0:
        raise ConfigError(f"expected at least one scale, all of them positive; found {tuple(scales)}.")


@lru_cache(maxsize=8)
def _normalisation(mean: Channels, std: Channels) -> np.ndarray:
    # The released program computes in float64 and stores float32; for 256 values a table does the same.
    pixels = np.arange(256)[None] / 255.0
    return ((pixels - np.asarray(mean)[:, None]) / np.asarray(std)[:, None]).astype(np.float32)


def _with_mirror(image: np.ndarray, table: np.ndarray) -> Tensor:
    view = np.empty((2, 3, *image.shape[:2]), dtype=np.float32)
    for channel in range(3):
        view[0, channel] = table[channel][image[..., channel]]
    view[1] = view[0, :, :, ::-1]
    return torch.from_numpy(view)


class ViewsDataset(Dataset[PredictItem]):
    """A data set of images with their views, for the stages that make localization maps.

    Args:
        folders: image id -> its data set.
        ids: of the images, in order.
        scales: see `multi_scale_views`.
        mean: see `multi_scale_views`.
        std: see `multi_scale_views`.
        max_side: in pixels; images with a longer side are scaled down first, to save memory. `size`, and the
            size of the maps, remain those of the image.
    """

    def __init__(
        self,
        folders: Mapping[str, BaseDataset],
        ids: Sequence[str],
        scales: Sequence[float] = SCALES,
        mean: Channels = IMAGENET_MEAN,
        std: Channels = IMAGENET_STD,
        max_side: int | None = None,
    ) -> None:
        unknown = [image_id for image_id in ids if image_id not in folders]
        if unknown:
            raise DataError(f"{len(unknown)} image ids are in none of the splits, first: {unknown[:5]}.")
        self.folders, self.ids = folders, ids
        self.scales, self.mean, self.std, self.max_side = tuple(scales), mean, std, max_side

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> PredictItem:
        image_id = self.ids[index]
        folder = self.folders[image_id]
        image = folder.image(image_id)
        views = multi_scale_views(capped(image, self.max_side), self.scales, self.mean, self.std)
        labels = torch.from_numpy(folder.labels[folder.index(image_id)]).float()
        return PredictItem(image_id, views, labels, (image.shape[0], image.shape[1]))


def only_item(items: list[T]) -> T:
    """The item of a batch of one; a module-level function, so that it can be pickled for workers."""
    return items[0]
