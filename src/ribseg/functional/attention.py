"""Localization maps refined by the attention of a transformer (docs/method.md, section 5.6).

Class-aware attention-based affinity (CAA) of Lin et al., *CLIP is Also an Efficient Segmenter*, CVPR 2023,
section 3.3: the attention between patches, made symmetric and doubly stochastic, propagates each class's map
inside the boxes around its own strong regions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.checks import check_number, check_switch
from ribseg.functional.guards import check_finite_maps

LEVELS = 255  # the released program thresholds maps as images of 256 levels
EPS = 1e-7  # added to a maximum before dividing, as in the released program


def attention_affinity(attention: Tensor, rounds: int = 3, power: int = 2) -> Tensor:
    """The affinity of patches: `((D + D^T) / 2) ^ power`, D the attention after Sinkhorn's normalization.

    Args:
        attention: (n, n), non-negative, from the patch of a row to those of the columns.
        rounds: of the normalization; each divides the columns by their sums, then the rows by theirs.
        power: exponent of the matrix.

    Returns:
        (n, n), symmetric and non-negative; its rows sum to about 1.

    Raises:
        SettingError: `rounds` or `power` is no positive integer.
        ValueError: not a square matrix, or negative or not finite values.

    >>> attention_affinity(torch.tensor([[0.8, 0.2], [0.2, 0.8]]), power=1)
    tensor([[0.8000, 0.2000],
            [0.2000, 0.8000]])
    """
    check_attention(rounds=rounds, power=power)
    if attention.ndim != 2 or attention.shape[0] != attention.shape[1]:
        raise ValueError(f"expected attention of shape (n, n), got {tuple(attention.shape)}")
    if not torch.isfinite(attention).all() or (attention < 0).any():
        raise ValueError("expected attention that is finite and not negative: after the softmax, not before")
    tiny = torch.finfo(attention.dtype).tiny  # a patch that no other one attends to stays without affinity
    for _ in range(rounds):
        attention = attention / attention.sum(0, keepdim=True).clamp(min=tiny)
        attention = attention / attention.sum(1, keepdim=True).clamp(min=tiny)
    return torch.linalg.matrix_power((attention + attention.T) / 2, power)


def refine_by_attention(
    maps: Tensor, affinity: Tensor, box_threshold: float = 0.4, short_boxes: bool = False
) -> Tensor:
    """Maps after one product with an affinity: `(A * box_c) @ map_c` for each class c, from 0 to 1.

    Args:
        maps: (K, h, w) in [0, 1]; K may be 0.
        affinity: (h * w, h * w), see `attention_affinity`.
        box_threshold: see `box_mask`.
        short_boxes: see `box_mask`.

    Returns:
        (K, h, w) in [0, 1], the minimum of each map subtracted, then divided by its maximum. A map without
        any value above 0 stays 0.

    Raises:
        SettingError: `box_threshold` is out of range.
        ValueError: the affinity is not of h * w patches.
    """
    places = maps.shape[-2] * maps.shape[-1]
    if affinity.shape != (places, places):
        raise ValueError(
            f"expected an affinity of {places} x {places} patches for maps of shape {tuple(maps.shape)}, got "
            f"{tuple(affinity.shape)}"
        )
    inside = maps * box_mask(maps, box_threshold, short_boxes)
    return from_0_to_1((inside.flatten(1) @ affinity.T).view_as(maps))


def from_0_to_1(maps: Tensor) -> Tensor:
    """(K, h, w) maps, the minimum of each subtracted, then divided by its maximum (+ 1e-7)."""
    if len(maps) == 0:
        return maps
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + EPS)


def box_mask(maps: Tensor, threshold: float = 0.4, short: bool = False) -> Tensor:
    """Whether a location is in a box around a connected region where its map is strong.

    As the released program, a region is connected over sides and corners, and thresholds are of 256 levels.

    Args:
        maps: (K, h, w) in [0, 1].
        threshold: share of each map's maximum, in [0, 1], which a region exceeds. Published: 0.4 on VOC, 0.7
            on COCO.
        short: whether boxes that touch the right or bottom side end one location before it, as in the
            released program.

    Returns:
        (K, h, w) bool; all False for a map without values above 0.

    Raises:
        SettingError: the threshold is out of range.

    >>> box_mask(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])).int()
    tensor([[[1, 1, 0],
             [1, 1, 0],
             [0, 0, 0]]], dtype=torch.int32)
    """
    check_attention(box_threshold=threshold, short_boxes=short)
    check_finite_maps(maps)
    mask = torch.zeros_like(maps, dtype=torch.bool)
    if maps.numel() == 0:
        return mask
    levels = (maps * LEVELS).floor()
    strong = levels > (threshold * levels.amax((1, 2), keepdim=True)).floor()
    height, width = maps.shape[1:]
    for place, top, bottom, left, right in _boxes(strong).tolist():
        rows, columns = (
            (bottom + 1, right + 1) if not short else (min(bottom + 1, height - 1), min(right + 1, width - 1))
        )
        mask[place, top:rows, left:columns] = True
    return mask


def _boxes(strong: Tensor) -> Tensor:
    """(K, h, w) bool -> (B, 5) int64: map, top, bottom, left and right (inclusive) of each region's box.

    Each location begins with its own coordinates and takes over the extremes of its neighbours in the region
    until nothing changes.
    """
    rows = torch.arange(strong.shape[1], device=strong.device)[:, None].expand_as(strong)
    columns = torch.arange(strong.shape[2], device=strong.device).expand_as(strong)
    extremes = torch.stack([-rows, rows, -columns, columns], 1).float()
    outside, known = ~strong[:, None], None
    extremes = extremes.masked_fill(outside, -torch.inf)
    while known is None or not torch.equal(extremes, known):
        known = extremes
        extremes = F.max_pool2d(extremes, 3, stride=1, padding=1).masked_fill(outside, -torch.inf)
    place, row, column = strong.nonzero(as_tuple=True)
    found = extremes[place, :, row, column].long() * torch.tensor([-1, 1, -1, 1], device=strong.device)
    return torch.cat([place[:, None], found], 1).unique(dim=0)


def check_attention(
    blocks: int = 8,
    rounds: int = 3,
    power: int = 2,
    box_threshold: float = 0.4,
    short_boxes: bool = False,
) -> None:
    """Raises a SettingError unless the settings of the refinement by attention are in range.

    Args:
        blocks: number of last blocks whose attention is averaged, see `ribseg.models.attention`.
        rounds: see `attention_affinity`.
        power: see `attention_affinity`.
        box_threshold: see `box_mask`.
        short_boxes: see `box_mask`.
    """
    check_number("blocks", blocks, low=1, whole=True)
    check_number("rounds", rounds, low=1, whole=True)
    check_number("power", power, low=1, whole=True)
    check_number("box_threshold", box_threshold, 0, 1)
    check_switch("short_boxes", short_boxes)
