"""Class activation maps as functions of tensors (RIB paper, section 3.1; docs/method.md, section 2.2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.functional.guards import check_class_maps
from ribseg.types import STRIDE

EPS = 1e-5  # added to the maximum before dividing, as in the released program


def class_maps(features: Tensor, weight: Tensor) -> Tensor:
    """Class maps `w_c . f(x)` at every location, neither rectified nor normalised.

    Computed in the precision of the weight, even under autocast: thresholds on the maps need it.

    Args:
        features: (N, D, h, w) output of the last stage.
        weight: (C, D) or (C, D, 1, 1), the classifier's weights without bias.

    Returns:
        (N, C, h, w) class maps.
    """
    with torch.autocast(features.device.type, enabled=False):
        return F.conv2d(features.to(weight.dtype), weight.reshape(weight.shape[0], -1, 1, 1))


def merge_mirrored(maps: Tensor) -> Tensor:
    """Adds the ReLU'd maps of an image and its mirror image, the second flipped back.

    Args:
        maps: (2, K, h, w), the image first, its mirror image second.

    Returns:
        (K, h, w), non-negative.
    """
    if maps.ndim != 4 or maps.shape[0] != 2:
        raise ValueError(
            f"expected maps of shape (2, K, h, w), image and mirror image, got {tuple(maps.shape)}"
        )
    rectified = maps.relu()
    return rectified[0] + rectified[1].flip(-1)


def normalize(maps: Tensor, eps: float = EPS) -> Tensor:
    """Divides each map by its maximum.

    Args:
        maps: (..., h, w), non-negative.
        eps: added to the maximum; an all-zero map stays zero.

    Returns:
        The same shape, in [0, 1).
    """
    if maps.numel() == 0:
        return maps
    return maps / (maps.amax((-2, -1), keepdim=True) + eps)


def active_area(maps: Tensor, threshold: float = 0.3) -> Tensor:
    """The fraction of locations where any normalised map exceeds a threshold.

    Args:
        maps: (K, h, w), non-negative, not normalised.
        threshold: in [0, 1].

    Returns:
        Scalar tensor in [0, 1]; NaN where a map is not finite.
    """
    normalized = normalize(maps)
    area = (normalized > threshold).any(0).float().mean()
    # nan > threshold is false, so without this a broken map would have a small area.
    return torch.where(torch.isfinite(normalized).all(), area, area.new_full((), float("nan")))


def strided_size(size: Sequence[int], stride: int = STRIDE) -> tuple[int, int]:
    """The size of maps at a stride: (H, W) in pixels -> (ceil(H / stride), ceil(W / stride))."""
    height, width = size
    return -(-height // stride), -(-width // stride)


def size_within(size: Sequence[int], side: int) -> tuple[int, int]:
    """The size (h, w) scaled down to a longer side of at most `side`, at least 1 x 1.

    >>> size_within((300, 400), 100), size_within((3, 4), 100)
    ((75, 100), (3, 4))
    """
    height, width = size
    scale = min(1.0, side / max(height, width, 1))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes (K, h, w) maps to (K, *size) bilinearly; K may be 0."""
    if len(maps) == 0:
        return maps.new_zeros(0, *size)  # interpolate refuses tensors without elements
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def resize_and_sum(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Resizes maps of several scales to one size (bilinear) and adds them.

    Args:
        maps: one (K, h_s, w_s) tensor per scale.
        size: (h, w) in pixels.

    Returns:
        (K, h, w).
    """
    return torch.stack([resize(scale, size) for scale in maps]).sum(0)


def argmax_labels(maps: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """The label of each pixel: argmax over a constant background score and the maps of the present classes.

    Ties go to the background, then to the first class.

    Args:
        maps: (K, H, W) normalised maps; K may be 0.
        classes: (K,) class indices, 0 = first class.
        threshold: the background score.

    Returns:
        (H, W) int64; 0 = background, c + 1 = class c.

    Raises:
        ValueError: shapes do not match, or a value is not finite.
    """
    check_class_maps(maps, classes)
    background = maps.new_full((1, *maps.shape[1:]), threshold)
    winner = torch.cat([background, maps]).argmax(0)
    ids = torch.cat([classes.new_zeros(1), classes + 1]).to(torch.int64)
    return ids[winner]
