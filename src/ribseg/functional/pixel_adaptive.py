"""Pixel-adaptive refinement (PAMR): a local and faster alternative to a dense CRF.

Araslanov, Roth: Single-Stage Semantic Segmentation from Image Labels, CVPR 2020, section 4.2.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.checks import check_number, check_numbers
from ribseg.functional.guards import check_finite_maps

EPS = 1e-8
AROUND = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))


def pixel_adaptive(
    image: Tensor,
    maps: Tensor,
    iterations: int = 10,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
    temperature: float = 0.1,
) -> Tensor:
    """Replaces each pixel's scores iteratively by a weighted mean over neighbours of similar color.

    The neighbours are the 3x3 neighbourhood at each dilation, with replicated borders. Their weights are a
    softmax of `-|color difference| / (temperature * local standard deviation)`, averaged over the channels.

    Args:
        image: (3, H, W), uint8 or float, in any unit.
        maps: (K, H, W) float scores, e.g. probabilities; K may be 0.
        iterations: at least 0.
        dilations: distances of the neighbours in pixels.
        temperature: lower values give similar neighbours more weight.

    Returns:
        (K, H, W), dtype and device of the maps; each value is a weighted mean of the map's values.

    Raises:
        ValueError: shapes do not match, or an argument is out of range.

    >>> image = torch.zeros(3, 8, 8); image[:, :, 4:] = 1
    >>> maps = torch.zeros(1, 8, 8); maps[0, 4, 1] = 1
    >>> refined = pixel_adaptive(image, maps, dilations=(1, 2))
    >>> bool(refined[0, :, :4].sum() > 100 * refined[0, :, 4:].sum())
    True
    """
    if image.ndim != 3 or maps.ndim != 3 or image.shape[1:] != maps.shape[1:] or 0 in image.shape:
        raise ValueError(
            "expected image (C, H, W) and maps (K, H, W) of the same size, got "
            f"{tuple(image.shape)} and {tuple(maps.shape)}; channels come first"
        )
    check_finite_maps(maps)
    check_pixel_adaptive(iterations, dilations, temperature)
    weights = _weights(image.to(maps.device, torch.float32), dilations, temperature)
    refined = maps.to(torch.float32)
    for _ in range(iterations if len(maps) else 0):
        refined = _weighted_sum(refined, weights, dilations)
    return refined.to(maps.dtype)


def check_pixel_adaptive(
    iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24), temperature: float = 0.1
) -> None:
    """Raises a ConfigError unless the settings of `pixel_adaptive` are in range."""
    check_number("iterations", iterations, low=0, whole=True)
    check_numbers("dilations", dilations, low=1, whole=True)
    check_number("temperature", temperature, above=0)


def _weights(image: Tensor, dilations: Sequence[int], temperature: float) -> Tensor:
    """(8 * dilations, H, W), summing to one over the first dimension."""
    neighbours = torch.stack(list(_neighbours(image, dilations)))
    deviation = neighbours.std(0)
    similarity = -(neighbours - image).abs() / (temperature * deviation + EPS)
    return similarity.mean(1).softmax(0)


def _weighted_sum(maps: Tensor, weights: Tensor, dilations: Sequence[int]) -> Tensor:
    total = torch.zeros_like(maps)
    for weight, neighbour in zip(weights, _neighbours(maps, dilations), strict=True):
        total.addcmul_(weight, neighbour)
    return total


def _neighbours(values: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Yields the values (C, H, W) shifted to each neighbour, with replicated borders."""
    height, width = values.shape[1:]
    radius = max(dilations)
    padded = F.pad(values[None], (radius,) * 4, mode="replicate")[0]
    for dilation in dilations:
        for y, x in AROUND:
            top, left = radius + y * dilation, radius + x * dilation
            yield padded[:, top : top + height, left : left + width]
