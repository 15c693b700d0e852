"""The toy data of the information bottleneck: 2s and 8s with marks beside them (docs/method.md, section 7).

The digit is the class. A tenth of the images also has a mark: a circle beside a 2, a square beside an 8. It
is relevant to the class but not discriminative, because the digit is always there. The masks of digit,
mark and rest are exact.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.checks import check_choice
from ribseg.errors import ConfigError, DatasetNotFoundError
from ribseg.seeds import rng
from ribseg.types import REGIONS

CLASSES = ("2", "8")
# The range of the digits that each split draws from; the splits share no digit.
SPLITS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
SIZE = 64  # edge length of the images in pixels
# Edge lengths of the boxes of digit and mark in pixels, both ends included.
DIGIT_SIZES, MARK_SIZES = (26, 32), (11, 14)
MARK_WIDTH = 2  # line width of the mark in pixels, like the strokes of a digit
# Contrast factor for upscaled digits, around 0.5; grey value from which a pixel belongs to the digit.
CONTRAST, INK = 3.0, 0.25


class Digits(NamedTuple):
    """Handwritten 2s and 8s: (N, h, w) float32 in [0, 1], ink is one; (N,) int64, 0 for 2 and 1 for 8."""

    images: Tensor
    labels: Tensor


class ToyImages(NamedTuple):
    """A toy data set in memory.

    Attributes:
        images: (N, 1, 64, 64) float32 in [0, 1].
        labels: (N, 2) float32, one-hot, in the order of `CLASSES`.
        regions: (N, 3, 64, 64) bool, in the order of `REGIONS`; every pixel is in exactly one. The second is
            empty where there is no mark.
    """

    images: Tensor
    labels: Tensor
    regions: Tensor

    @property
    def marked(self) -> Tensor:
        """(N,) bool: which images have a mark."""
        return self.regions[:, 1].any(-1).any(-1)


@lru_cache(maxsize=1)
def read_digits(mnist_root: str | Path | None = None) -> Digits:
    """The 2s and 8s of scikit-learn's bundled digits (8x8 pixels, 351 of them), or of MNIST.

    Args:
        mnist_root: folder for torchvision's MNIST (with `MNIST/raw`); None for scikit-learn's.

    Raises:
        DatasetNotFoundError: there is no MNIST; nothing is downloaded.
    """
    if mnist_root is None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images, names = torch.from_numpy(bunch.images).float() / 16, torch.from_numpy(bunch.target)
    else:
        from torchvision.datasets import MNIST

        try:
            mnist = MNIST(mnist_root, train=True, download=False)
        except RuntimeError as error:
            raise DatasetNotFoundError(
                f"no MNIST in {mnist_root}: expected MNIST/raw/train-images-idx3-ubyte and its labels below "
                "it; fetch them with torchvision.datasets.MNIST(root, download=True), or leave it out"
            ) from error
        images, names = mnist.data.float() / 255, mnist.targets
    chosen = (names == 2) | (names == 8)
    return Digits(images[chosen], (names[chosen] == 8).long())


def digits_fingerprint(digits: Digits) -> str:
    """sha256 of pixels and labels, independent of the files."""
    return hashlib.sha256(digits.images.numpy().tobytes() + digits.labels.numpy().tobytes()).hexdigest()


def split_digits(digits: Digits, split: str) -> Digits:
    """The digits of a split, the same for every seed.

    Raises:
        ConfigError: unknown split, or too few digits for it.
    """
    check_choice("split", split, list(SPLITS))
    start, end = (round(share * len(digits.labels)) for share in SPLITS[split])
    # Not shuffled: neighbours in the files have the same writer, so that few writers are in two splits.
    part = Digits(digits.images[start:end], digits.labels[start:end])
    if len(part.labels.unique()) < len(CLASSES):
        raise ConfigError(f"expected 2s and 8s in split {split}, got {len(part.labels)} digits of one class")
    return part


def toy_images(
    digits: Digits, number: int, marked: float = 0.1, seed: int = 0, name: str = "train"
) -> ToyImages:
    """Images of a digit on black at a random position, a share of them with a mark outside its box.

    Args:
        digits: to draw from; the classes alternate.
        number: N.
        marked: share of the images with a mark, in [0, 1]; rounded to whole images, which come first.
        seed: of all randomness, together with `name`.
        name: of the split.
    """
    images = torch.zeros(number, 1, SIZE, SIZE)
    labels = torch.zeros(number, len(CLASSES))
    regions = torch.zeros(number, len(REGIONS), SIZE, SIZE, dtype=torch.bool)
    pools = [digits.images[digits.labels == label] for label in range(len(CLASSES))]
    for index in range(number):
        draw = rng(seed, "toy", name, index)
        label = index % len(CLASSES)
        digit = _scaled(pools[label][int(draw.integers(len(pools[label])))], _side(draw, DIGIT_SIZES))
        mark = _mark(label, _side(draw, MARK_SIZES)) if index < round(marked * number) else None
        _place(images[index, 0], regions[index], digit, mark, draw)
        labels[index, label] = 1
    regions[:, 2] = ~(regions[:, 0] | regions[:, 1])
    return ToyImages(images, labels, regions)


class ToyBatches:
    """Batches of a toy data set in memory, as `ToyImages`.

    Args:
        toy: the data.
        batch_size: of all batches but the last.
        seed: for shuffling on every pass; None keeps the order.
    """

    def __init__(self, toy: ToyImages, batch_size: int, seed: int | None = None) -> None:
        self.toy, self.batch_size, self.seed, self.passes = toy, batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.toy.images) // self.batch_size)

    def __iter__(self) -> Iterator[ToyImages]:
        order = torch.arange(len(self.toy.images))
        if self.seed is not None:
            order = torch.from_numpy(rng(self.seed, "toy order", self.passes).permutation(len(order)))
            self.passes += 1
        for chosen in order.split(self.batch_size):
            yield ToyImages(*(part[chosen] for part in self.toy))


def _side(draw: np.random.Generator, sizes: tuple[int, int]) -> int:
    return int(draw.integers(sizes[0], sizes[1] + 1))


def _scaled(digit: Tensor, side: int) -> Tensor:
    """(h, w) -> (side, side), bicubic, with increased contrast, because upscaling blurs edges."""
    large = F.interpolate(digit[None, None], (side, side), mode="bicubic", align_corners=False)[0, 0]
    return (CONTRAST * (large - 0.5) + 0.5).clamp(0, 1)


def _mark(label: int, side: int) -> Tensor:
    """(side, side) bool: the outline of a circle for the first class, of a square for the second."""
    axis = torch.arange(side) - (side - 1) / 2
    if label == 0:
        distance = (axis[:, None] ** 2 + axis**2).sqrt()
    else:
        # One pixel smaller on each side: about the area of the circle.
        distance = torch.maximum(axis[:, None].abs(), axis.abs()) + 1
    return (distance <= side / 2) & (distance > side / 2 - MARK_WIDTH)


def _place(
    image: Tensor, regions: Tensor, digit: Tensor, mark: Tensor | None, draw: np.random.Generator
) -> None:
    """Draws digit and mark into one image and its regions, at random positions without overlap."""
    box = _corner(draw, len(digit))
    _paste(image, digit, box)
    regions[0] = image >= INK
    if mark is None:
        return
    place = _corner(draw, len(mark))
    while all(a < b + len(mark) and b < a + len(digit) for a, b in zip(box, place, strict=True)):
        place = _corner(draw, len(mark))
    _paste(image, mark.float(), place)
    _paste(regions[1], mark, place)


def _corner(draw: np.random.Generator, side: int) -> tuple[int, int]:
    top, left = draw.integers(0, SIZE - side + 1, 2)
    return int(top), int(left)


def _paste(canvas: Tensor, patch: Tensor, corner: tuple[int, int]) -> None:
    canvas[corner[0] : corner[0] + len(patch), corner[1] : corner[1] + len(patch)] = patch
