"""Affinity of pixel pairs from class boundaries, and its training losses (IRN paper, section 4.2).

A pair is a pixel and one of its neighbours within a radius. Its affinity is one minus the highest boundary on
the line between them. Each pair is listed in one direction only: the neighbour is to the right in the same
row, or in a row below.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ribseg.checks import check_number

Offset = tuple[int, int]
EPS = 1e-5  # added in logarithms and to counts, as published


class PairLabels(NamedTuple):
    """Masks of the pairs by kind, (N, P, h', w') bool each; see `pair_labels`."""

    background: Tensor
    foreground: Tensor
    negative: Tensor


class AffinityLosses(NamedTuple):
    """Scalar losses, each a mean over its kind of pairs; zero without such pairs.

    Attributes:
        background: -log affinity of pairs inside the background.
        foreground: -log affinity of pairs inside one class.
        negative: -log(1 - affinity) of pairs of different labels.
        displacement_foreground: L1 distance of the displacements' difference from the pair's offset, pixels.
        displacement_background: L1 norm of the displacements' difference, pixels.
    """

    background: Tensor
    foreground: Tensor
    negative: Tensor
    displacement_foreground: Tensor
    displacement_background: Tensor

    @property
    def total(self) -> Tensor:
        """The published weighting: all positive pairs have the same weight as all negative pairs."""
        positive = (self.background + self.foreground) / 2
        displacement = self.displacement_foreground + self.displacement_background
        return (positive + self.negative) / 2 + displacement / 2


def check_radius(radius: int) -> None:
    """Raises a ConfigError unless a radius is an integer >= 2 pixels: below 2 there are no neighbours."""
    check_number("radius", radius, low=2, whole=True)


@lru_cache
def neighbour_offsets(radius: int) -> tuple[Offset, ...]:
    """Offsets of neighbours nearer than `radius`, in one direction: (dy, dx) > (0, 0) lexicographically.

    >>> len(neighbour_offsets(5)), neighbour_offsets(2)
    (34, ((0, 1), (1, -1), (1, 0), (1, 1)))
    """
    check_radius(radius)
    reach = range(-radius + 1, radius)
    return tuple(
        (y, x) for y in range(radius) for x in reach if y * y + x * x < radius**2 and (y, x) > (0, 0)
    )


@lru_cache
def line_points(offset: Offset) -> tuple[Offset, ...]:
    """Points (y, x) on the line from (0, 0) to an offset: at a distance below 1, inside the bounding box.

    >>> line_points((1, 2))
    ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))
    """
    dy, dx = offset
    rows = range(min(0, dy), max(0, dy) + 1)
    columns = range(min(0, dx), max(0, dx) + 1)
    # Squared distance from the line is cross^2 / length^2; integers keep the comparison exact.
    return tuple((y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < dy * dy + dx * dx)


def pair_affinity(boundary: Tensor, radius: int) -> Tensor:
    """Affinity of all pairs whose first pixel has all its neighbours inside the image.

    Args:
        boundary: (N, h, w) in [0, 1].
        radius: in pixels of the map.

    Returns:
        (N, P, h', w') in [0, 1] for the P offsets of `neighbour_offsets`, with h' = h - radius + 1 and
        w' = w - 2 (radius - 1). The gradient reaches only the point with the highest boundary.

    Raises:
        ValueError: the map is smaller than a neighbourhood.
    """
    places = torch.stack([_highest_point(boundary.detach(), o, radius) for o in neighbour_offsets(radius)], 1)
    # The maximum is found without gradients, then gathered: autograd stores only one number per pair.
    highest = boundary.flatten(1).gather(1, places.flatten(1))
    return 1 - highest.view(places.shape)


def _highest_point(boundary: Tensor, offset: Offset, radius: int) -> Tensor:
    """(N, h', w') indices into h * w of the highest boundary on each line with this offset."""
    points = line_points(offset)
    width = boundary.shape[-1]
    best = torch.stack([shifted(boundary, point, radius) for point in points]).argmax(0)
    steps = torch.tensor([y * width + x for y, x in points], device=boundary.device)
    starts = torch.arange(boundary[0].numel(), device=boundary.device).view(boundary.shape[1:])
    return steps[best] + shifted(starts, (0, 0), radius)


def shifted(values: Tensor, offset: Offset, radius: int) -> Tensor:
    """(..., h, w) -> (..., h', w'): for each first pixel of a pair, the value at an offset from it."""
    reach = radius - 1
    rows, columns = values.shape[-2] - reach, values.shape[-1] - 2 * reach
    if rows < 1 or columns < 1:
        raise ValueError(
            f"expected maps of at least {radius} x {2 * radius - 1} pixels for radius {radius}, got "
            f"{tuple(values.shape[-2:])}; use larger crops or a smaller radius"
        )
    top, left = offset[0], reach + offset[1]
    return values[..., top : top + rows, left : left + columns]


def pair_labels(labels: Tensor, radius: int, ignore_index: int = 255) -> PairLabels:
    """Sorts the pairs of `pair_affinity` by the labels of their two pixels.

    Args:
        labels: (N, h, w) integers, 0 = background.
        radius: in pixels of the map.
        ignore_index: pairs with such a pixel are in none of the masks.

    Returns:
        Three disjoint (N, P, h', w') masks.
    """
    first = shifted(labels, (0, 0), radius)[:, None]
    second = torch.stack([shifted(labels, offset, radius) for offset in neighbour_offsets(radius)], 1)
    known = (first != ignore_index) & (second != ignore_index)
    same = (first == second) & known
    return PairLabels(same & (first == 0), same & (first != 0), ~same & known)


def affinity_losses(
    boundary: Tensor, displacement: Tensor, labels: Tensor, radius: int = 10, ignore_index: int = 255
) -> AffinityLosses:
    """The losses of IRNet's two branches.

    Args:
        boundary: (N, h, w) in [0, 1], at stride 4.
        displacement: (N, 2, h, w), (dy, dx) to the center of the pixel's object, in pixels of the map.
        labels: (N, h, w) integers, 0 = background.
        radius: of the pairs, in pixels of the map; 10 in the paper.
        ignore_index: label of ignored pixels.

    Raises:
        ValueError: shapes do not match, or the maps are smaller than a neighbourhood.
    """
    if boundary.shape != labels.shape or displacement.shape != (len(boundary), 2, *boundary.shape[1:]):
        raise ValueError(
            "expected boundary (N, h, w), displacement (N, 2, h, w) and labels (N, h, w), got "
            f"{tuple(boundary.shape)}, {tuple(displacement.shape)} and {tuple(labels.shape)}; "
            "bring the labels to the stride of the maps"
        )
    affinity = pair_affinity(boundary, radius)
    kinds = pair_labels(labels, radius, ignore_index)
    # The kinds are disjoint, so one tensor holds all losses; this saves memory: the published crop size has
    # two million pairs per image.
    loss = -torch.log(torch.where(kinds.negative, 1 - affinity, affinity) + EPS)
    offsets = neighbour_offsets(radius)
    target = torch.tensor(offsets, dtype=displacement.dtype, device=displacement.device).T[:, :, None, None]
    difference = _pair_displacement(displacement, offsets, radius)
    distance = (difference - target * kinds.foreground[:, None]).abs().mean(1)
    return AffinityLosses(
        masked_mean(loss, kinds.background),
        masked_mean(loss, kinds.foreground),
        masked_mean(loss, kinds.negative),
        masked_mean(distance, kinds.foreground),
        masked_mean(distance, kinds.background),
    )


def _pair_displacement(displacement: Tensor, offsets: Sequence[Offset], radius: int) -> Tensor:
    """(N, 2, P, h', w'): displacement of the first pixel minus that of the second."""
    second = torch.stack([shifted(displacement, offset, radius) for offset in offsets], 2)
    return shifted(displacement, (0, 0), radius)[:, :, None] - second


def masked_mean(loss: Tensor, mask: Tensor) -> Tensor:
    """Scalar mean of a loss over a mask of the same shape; zero where the mask is empty."""
    return (loss * mask).sum() / (mask.sum() + EPS)
