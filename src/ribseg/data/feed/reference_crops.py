"""Augmented crops of RIB's reference images: made by the CPU, or by the GPU that adapts to them."""

import threading
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple, Protocol

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from ribseg.data.augment.transforms import Channels, Crop, draw_crop, seeded

GROUP = 2**23  # pixels, padding included, that are cut at once: 20 images of VOC, or one of 8 megapixels
WHITE = 255


class PerThread(threading.local):
    """A transform, and a copy of it for each further thread: it holds its random stream.

    Args:
        transform: of (H, W, 3) uint8 into a tensor.
    """

    def __init__(self, transform: A.Compose) -> None:
        self.own = deepcopy(transform)

    def seeded(self, seed: int) -> A.Compose:
        """This thread's, its stream restarted."""
        return seeded(self.own, seed)


class Crops(Protocol):
    """A batch of crops that is being made."""

    def put(self, row: int, image: np.ndarray, seed: int) -> None:
        """Makes (H, W, 3) uint8 a row of the batch, with random numbers of its own; in any thread."""

    def take(self) -> Tensor:
        """(B, 3, S, S) float32, once all rows are there."""


class HostCrops:
    """Crops that the CPU makes, each written into its row: a second copy would be another 60 MB a step.

    Args:
        transforms: what makes a crop.
        shape: (B, 3, S, S).
        pin: the batch lies in pinned memory, from where it travels to a GPU while that computes.
    """

    def __init__(self, transforms: PerThread, shape: Sequence[int], pin: bool = False) -> None:
        self.transforms = transforms
        self.images = torch.empty(tuple(shape), pin_memory=pin and shape[0] > 0)

    def put(self, row: int, image: np.ndarray, seed: int) -> None:
        """See `Crops`."""
        crop = self.transforms.seeded(seed)(image=image)["image"]
        # numpy copies without torch's thread pool, which several threads at once would fight over.
        self.images[row].numpy()[...] = crop.numpy()

    def take(self) -> Tensor:
        """See `Crops`."""
        return self.images


class DeviceCrops:
    """Crops that a GPU makes: only the numbers are drawn here, and images travel whole, in 8 bit.

    Args:
        transforms: of `train_transform`, to draw the numbers.
        rows: B.
        device: where the crops are made, and stay.
    """

    def __init__(self, transforms: PerThread, rows: int, device: torch.device) -> None:
        self.transforms, self.device = transforms, device
        self.cuts: list[Cut | None] = [None] * rows

    def put(self, row: int, image: np.ndarray, seed: int) -> None:
        """See `Crops`."""
        crop = draw_crop(self.transforms.seeded(seed), *image.shape[:2])
        pixels = torch.empty(image.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        pixels.numpy()[...] = image
        self.cuts[row] = Cut(pixels, crop)

    def take(self) -> Tensor:
        """See `Crops`."""
        _, _, normalize, _, crop, _ = self.transforms.own.transforms
        cuts = [cut for cut in self.cuts if cut is not None]
        return cut_crops(cuts, crop.height, normalize.mean, normalize.std, self.device)


class Cut(NamedTuple):
    """An image on its way to the device.

    Attributes:
        image: (H, W, 3) uint8, in pinned memory if it is to travel while the device computes.
        crop: what becomes of it.
    """

    image: Tensor
    crop: Crop


def cut_crops(cuts: Sequence[Cut], side: int, mean: Channels, std: Channels, device: torch.device) -> Tensor:
    """Resizes, mirrors, crops and normalises images of any sizes; waits for nothing.

    Two matrix products an image: each row of a matrix holds the weights of Pillow's bicubic filter for one
    column (then row) of the crop, so that it resizes, mirrors and crops at once. As in Pillow, values are
    rounded to 8 bit after each. The result is that of `ribseg.data.train_transform` for the same draws, but
    for few values that are rounded to the next level (and more where an image is over twice as tall as wide:
    Pillow resizes its rows first, which cuts off other overshoots).

    Args:
        cuts: B images and what to do with them.
        side: of the crops in pixels.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        device: where it happens.

    Returns:
        (B, 3, side, side) float32 on the device; zero beside the image.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        parts = [_cut(group, side, mean, std, device) for group in _groups(cuts)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def _groups(cuts: Sequence[Cut]) -> Iterator[Sequence[Cut]]:
    """Consecutive images that, padded to one size, do not exceed GROUP; at least one each."""
    first, height, width = 0, 0, 0
    for number, (image, _) in enumerate(cuts):
        height, width = max(height, image.shape[0]), max(width, image.shape[1])
        if number > first and (number + 1 - first) * height * width > GROUP:
            yield cuts[first:number]
            first, (height, width) = number, image.shape[:2]
    yield cuts[first:]


def _cut(cuts: Sequence[Cut], side: int, mean: Channels, std: Channels, device: torch.device) -> Tensor:
    images = _padded([image for image, _ in cuts], device)
    count, height, width, _ = images.shape
    rows = [
        (image.shape[0], crop.height, crop.top, False, image.shape[1], crop.width, crop.left, crop.mirrored)
        for image, crop in cuts
    ]
    numbers = torch.tensor(rows, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    down, inside_down = _resampling(numbers[:, :4], side, height)
    across, inside_across = _resampling(numbers[:, 4:], side, width)
    pixels = images.permute(0, 3, 1, 2).float().reshape(count, 3 * height, width)
    pixels = _rounded(pixels @ across.mT)  # columns first, as Pillow does
    pixels = pixels.reshape(count, 3, height, side).transpose(1, 2).reshape(count, height, 3 * side)
    pixels = _rounded(down @ pixels).reshape(count, side, 3, side).transpose(1, 2)
    crops = torch.empty(count, 3, side, side, device=device)
    for channel in range(3):  # mean and std as plain numbers: a tensor of them would have to travel
        torch.sub(pixels[:, channel], WHITE * mean[channel], out=crops[:, channel])
        crops[:, channel] /= WHITE * std[channel]
    return crops.mul_((inside_down[:, :, None] & inside_across[:, None, :])[:, None])


def _padded(images: Sequence[Tensor], device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 on the device: images of different sizes, top left on zeros."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    padded = torch.zeros(len(images), height, width, 3, dtype=torch.uint8, device=device)
    for row, image in zip(padded, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image.to(device, non_blocking=True)
    return padded


def _resampling(axis: Tensor, side: int, length: int) -> tuple[Tensor, Tensor]:
    """Weights of Pillow's bicubic filter from an axis of B images to that of their crops.

    Args:
        axis: (B, 4) int64: length of the image, length when resized, place of the crop's first pixel there,
            whether mirrored.
        side: of the crops.
        length: of the padded images.

    Returns:
        (B, side, length) float32, and (B, side) bool: where the crop lies in the image; elsewhere 0.
    """
    source, target, first, mirrored = axis[:, :, None].unbind(1)
    place = first + torch.arange(side, device=axis.device)
    inside = (place >= 0) & (place < target)
    place = torch.where(mirrored > 0, target - 1 - place, place)
    scale = source.double() / target
    center = (place + 0.5) * scale
    whole = center.floor()
    # Whole pixels are exact in single precision, also far from the origin.
    pixel = torch.arange(length, device=axis.device)
    offset = pixel - whole.float()[..., None]
    distance = (offset + (0.5 - (center - whole)).float()[..., None]) / scale.clamp(min=1).float()[..., None]
    seen = inside[..., None] & (pixel < source[..., None])
    weights = _bicubic(distance.abs()) * seen
    # Never zero inside; outside all weights are.
    return weights / torch.where(inside, weights.sum(-1), 1.0)[..., None], inside


def _bicubic(x: Tensor) -> Tensor:
    """Keys' filter with a = -0.5, Pillow's, of distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _rounded(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, WHITE)
