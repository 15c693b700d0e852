"""Augmentation of the classifier's training images and of RIB's reference images.

The published recipe (docs/method.md, section 2.1; Ahn, Cho, Kwak, CVPR 2019; used unchanged by RIB): bicubic
resizing of the longer side to a uniform integer in 320..640, a horizontal flip with probability 0.5,
normalization, and a random 512 x 512 crop; smaller images are padded at random with zeros, the mean colour.
"""

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import albumentations as A
import cv2
import numpy as np
from albumentations.pytorch import ToTensorV2

from ribseg.checks import check_number
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD, Channels, rescale
from ribseg.data.io.masks import IGNORE
from ribseg.errors import ConfigError

T = TypeVar("T", bound=A.BaseCompose | A.BasicTransform)


class LongestSide(A.LongestMaxSize):
    """LongestMaxSize with Pillow's bicubic filter, as published; OpenCV's has aliasing when downscaling."""

    def apply(self, img: np.ndarray, scale: float, **params: Any) -> np.ndarray:
        """Resizes (H, W, 3) uint8 by the drawn scale."""
        return rescale(img, scale)


def train_transform(
    crop_size: int = 512,
    resize_long: Sequence[int] = (320, 640),
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
    flip: float = 0.5,
) -> A.Compose:
    """The training augmentation, to be called as `transform(image=image)["image"]`.

    Args:
        crop_size: side of the square crop in pixels.
        resize_long: (smallest, largest) length of the longer side, both included.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        flip: probability of a horizontal flip.

    Returns:
        A transform of (H, W, 3) uint8 into a (3, crop_size, crop_size) float32 tensor.

    Raises:
        ConfigError: if a size is not positive, the range is empty, or `flip` is not a probability.
    """
    low, high = _range(resize_long)
    return random_crops(LongestSide(max_size=list(range(low, high + 1))), crop_size, mean, std, flip)


def eval_transform(
    crop_size: int = 512,
    resize_long: int = 480,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
) -> A.Compose:
    """The transform for validation: no randomness, no cropping.

    Args:
        crop_size: side of the square output in pixels.
        resize_long: length of the longer side, at most crop_size; padded right and below with zeros.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].

    Returns:
        A transform of (H, W, 3) uint8 into a (3, crop_size, crop_size) float32 tensor.

    Raises:
        ConfigError: if a size is not positive.
    """
    pad, normalize = pad_to(crop_size, "top_left"), A.Normalize(mean=tuple(mean), std=tuple(std))
    _range((resize_long, resize_long))
    return A.Compose([LongestSide(max_size=min(resize_long, crop_size)), normalize, pad, ToTensorV2()])


def random_crops(
    resize: A.BasicTransform, size: int, mean: Channels, std: Channels, flip: float
) -> A.Compose:
    """The published training augmentation: random resizing, flip, normalization, random crop.

    Args:
        resize: draws a scale and resizes.
        size: side of the square crop in pixels; smaller images are padded first, see `pad_to`.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        flip: probability of a horizontal flip.

    Raises:
        ConfigError: if the size is not positive, or `flip` is not a probability.
    """
    check_number("flip", flip, low=0, high=1)
    normalize = A.Normalize(mean=tuple(mean), std=tuple(std))
    pad, crop = pad_to(size, "random"), A.RandomCrop(height=size, width=size)
    return A.Compose([resize, A.HorizontalFlip(p=flip), normalize, pad, crop, ToTensorV2()])


def pad_to(size: int, position: str) -> A.PadIfNeeded:
    """Padding of smaller images to a square: 0 (the mean color) in the image, 255 (ignore) in the mask.

    Args:
        size: side of the square in pixels.
        position: of the image in the square, "random" or "top_left".

    Raises:
        ConfigError: if the size is not positive.
    """
    check_number("crop_size", size, low=1, whole=True)
    constant = {"border_mode": cv2.BORDER_CONSTANT, "fill": 0, "fill_mask": IGNORE}
    return A.PadIfNeeded(min_height=size, min_width=size, position=position, **constant)


def seeded(transform: T, seed: int) -> T:
    """Seeds a transform in place and returns it; the same seed gives the same output in any process.

    `Compose.set_random_seed` gives the same seed to each step, so that their draws are correlated: an image
    would be flipped whenever it is scaled down. Here all steps draw from one generator.

    Args:
        transform: from `train_transform`, for example.
        seed: non-negative.
    """
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return transform


def _range(resize_long: Sequence[int]) -> tuple[int, int]:
    low, high = resize_long
    if not 1 <= low <= high:
        raise ConfigError(f"expected resize_long as 1 <= smallest <= largest, found {tuple(resize_long)}.")
    return int(low), int(high)
