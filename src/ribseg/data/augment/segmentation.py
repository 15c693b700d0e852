"""Images with label maps, for IRNet and the segmenter, and their joint augmentation.

Published for IRN and DeepLab: scaling by a uniform factor in 0.5..1.5, horizontal flip with probability 0.5,
normalization, and a random crop; smaller images are padded at random with the mean colour and the label 255.
"""

from collections.abc import Callable, Sequence
from typing import Any

import albumentations as A
import numpy as np
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch.utils.data import Dataset

from ribseg.data.augment.transforms import pad_to, random_crops
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD, Channels, rescale, rescaled_size
from ribseg.errors import ConfigError, DataError
from ribseg.types import MaskSample

Reader = Callable[[str], np.ndarray]


class SegmentationDataset(Dataset[MaskSample]):
    """A data set of images and label maps from two functions.

    Args:
        ids: of the images.
        image: image id -> (H, W, 3) uint8, as `BaseDataset.image`.
        mask: image id -> (H, W) uint8 class ids, 0 background, 255 ignore, as `BaseDataset.mask`.
        transform: of image and mask, see `segmentation_train_transform`; None for none.

    Raises:
        DataError: from `[i]`, if a file is broken, or a mask does not have its image's size.
    """

    def __init__(
        self,
        ids: Sequence[str],
        image: Reader,
        mask: Reader,
        transform: A.Compose | None = None,
    ) -> None:
        self.ids, self.image, self.mask, self.transform = ids, image, mask, transform

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> MaskSample:
        """An item; with a transform of this module (3, S, S) float32 and (S, S) uint8 tensors."""
        image_id = self.ids[index]
        image, mask = self.image(image_id), self.mask(image_id)
        if image.shape[:2] != mask.shape:
            raise DataError(
                f"the mask of {image_id} is of size {mask.shape}, its image of {image.shape[:2]} (height, "
                "width); the mask must belong to this image"
            )
        if self.transform is None:
            return MaskSample(image_id, image, mask)
        sample = self.transform(image=image, mask=mask)
        return MaskSample(image_id, sample["image"], sample["mask"])


class CountedDataset(Dataset[MaskSample]):
    """The items of a data set, and so many more that each process gets the same number of them.

    Under DDP unequal numbers of steps would hang, and repeated images would count twice: the additional items
    have `counts` False. For torch's DistributedSampler.

    Args:
        dataset: of the items.
        processes: number of processes.
    """

    def __init__(self, dataset: SegmentationDataset, processes: int = 1) -> None:
        self.dataset, self.processes = dataset, processes

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.processes) * self.processes

    def __getitem__(self, index: int) -> MaskSample:
        number = len(self.dataset)
        return self.dataset[index % number]._replace(counts=index < number)


class RandomRescale(A.RandomScale):
    """RandomScale as published: Pillow's bicubic filter for the image, nearest for the mask."""

    def apply(self, img: np.ndarray, scale: float, **params: Any) -> np.ndarray:
        """Resizes (H, W, 3) uint8 by the drawn scale."""
        return rescale(img, scale)

    def apply_to_mask(self, mask: np.ndarray, scale: float, **params: Any) -> np.ndarray:
        """Resizes (H, W) uint8 to the same size, without interpolating labels."""
        height, width = rescaled_size(mask.shape, scale)
        if (height, width) == mask.shape:
            return mask
        return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def segmentation_train_transform(
    crop_size: int = 512,
    scale: Sequence[float] = (0.5, 1.5),
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
    flip: float = 0.5,
) -> A.Compose:
    """The training augmentation, to be called as `transform(image=image, mask=mask)`.

    Args:
        crop_size: side of the square crop in pixels: 512 for IRNet, 321 for the segmenter.
        scale: (smallest, largest) factor.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        flip: probability of a horizontal flip.

    Returns:
        A transform of (H, W, 3) uint8 and (H, W) uint8 into a (3, crop_size, crop_size) float32 tensor and a
        (crop_size, crop_size) uint8 tensor.

    Raises:
        ConfigError: if the size is not positive, the range is empty, or `flip` is not a probability.
    """
    low, high = scale
    if not 0 < low <= high:
        raise ConfigError(f"expected scale as 0 < smallest <= largest, found {tuple(scale)}.")
    return random_crops(RandomRescale(scale_limit=(low - 1, high - 1), p=1.0), crop_size, mean, std, flip)


def segmentation_eval_transform(
    crop_size: int = 512, mean: Channels = IMAGENET_MEAN, std: Channels = IMAGENET_STD
) -> A.Compose:
    """The top left crop, padded right and below, without randomness; for IRNet's mean displacement.

    Args:
        crop_size: side of the square output in pixels.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].

    Returns:
        As `segmentation_train_transform`.

    Raises:
        ConfigError: if the size is not positive.
    """
    normalize, pad = A.Normalize(mean=tuple(mean), std=tuple(std)), pad_to(crop_size, "top_left")
    return A.Compose([normalize, pad, A.Crop(x_max=crop_size, y_max=crop_size), ToTensorV2()])


def whole_image_transform(mean: Channels = IMAGENET_MEAN, std: Channels = IMAGENET_STD) -> A.Compose:
    """Normalisation alone, for validation on whole images.

    Args:
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].

    Returns:
        A transform of (H, W, 3) uint8 and (H, W) uint8 into (3, H, W) float32 and (H, W) uint8 tensors.
    """
    return A.Compose([A.Normalize(mean=tuple(mean), std=tuple(std)), ToTensorV2()])
