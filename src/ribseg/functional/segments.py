"""Votes of class-agnostic segments: superpixels, or the masks of a segmenter without classes."""

import torch
from torch import Tensor

from ribseg.checks import check_number
from ribseg.types import IGNORE

KEEP = -1  # the winner of a segment that decides nothing


def vote_segments(labels: Tensor, segments: Tensor, share: float = 0.5) -> Tensor:
    """The label of each pixel after its segment took one label as a whole (docs/method.md, section 5.6).

    A segment takes the class that most of its pixels have, if these are at least `share` of it; else it takes
    the background, if more of its pixels are background than of any class; else its pixels keep their labels.
    Pixels labelled 255 count in the size of a segment, but do not vote.

    Where segments overlap, a pixel follows the first of those that cover it in this order: segments with a
    class before those with background, as the masks of parts and of whole objects contradict each other where
    maps cover a part; then the higher share of the winning label; then the smaller segment; then the earlier
    one. Pixels in no segment keep their labels.

    Args:
        labels: (H, W) int, 0 = background, c + 1 = class c, 255 = ignored.
        segments: (H, W) int, the number of each pixel's segment, 0 = in none; or (S, H, W) bool, which may
            overlap; S may be 0.
        share: in (0, 1].

    Returns:
        (H, W) int64 labels; 255 is left where no segment decides.

    Raises:
        ValueError: shapes or types do not match, or a value is out of range.
        ConfigError: `share` is out of range.

    >>> labels, segments = torch.tensor([[1, 1, 0, 0, 0]]), torch.tensor([[1, 1, 1, 2, 0]])
    >>> vote_segments(labels, segments)
    tensor([[1, 1, 1, 0, 0]])
    """
    _check(labels, segments)
    check_share(share)
    labels = labels.to(torch.int64)
    if segments.ndim == 2:
        return _partition(labels, segments, share)
    return _overlapping(labels, segments, share)


def check_share(share: float) -> None:
    """Raises a ConfigError unless `share` is in (0, 1]."""
    check_number("share", share, above=0, high=1)


def _check(labels: Tensor, segments: Tensor) -> None:
    if labels.ndim != 2 or segments.ndim not in (2, 3) or segments.shape[-2:] != labels.shape:
        raise ValueError(
            "expected labels (H, W) and segments (H, W) or (S, H, W) of the same size, got "
            f"{tuple(labels.shape)} and {tuple(segments.shape)}"
        )
    if labels.is_floating_point() or (segments.dtype == torch.bool) != (segments.ndim == 3):
        raise ValueError(
            "expected integer labels, and segments (H, W) of integers or (S, H, W) of bool, got "
            f"{labels.dtype} and {segments.dtype} {tuple(segments.shape)}"
        )
    if segments.is_floating_point():
        raise ValueError(f"expected segments of integers, got {segments.dtype}")
    for name, values, high in (("labels", labels, IGNORE), ("segments", segments, None)):
        if values.numel() and (values.min() < 0 or (high is not None and values.max() > high)):
            bounds = "of at least 0" if high is None else f"in 0..{high}"
            raise ValueError(f"expected {name} {bounds}, got {int(values.min())}..{int(values.max())}")


def _partition(labels: Tensor, segments: Tensor, share: float) -> Tensor:
    numbers, place = segments.unique(return_inverse=True)
    flat = place.flatten() * (IGNORE + 1) + labels.flatten()
    counts = torch.bincount(flat, minlength=len(numbers) * (IGNORE + 1)).reshape(-1, IGNORE + 1)
    winner = _winners(counts, share)[0]
    winner[numbers == 0] = KEEP
    chosen = winner[place]
    return torch.where(chosen == KEEP, labels, chosen)


def _overlapping(labels: Tensor, segments: Tensor, share: float) -> Tensor:
    counts = [torch.bincount(labels[segment], minlength=IGNORE + 1) for segment in segments]
    if not counts:
        return labels
    stacked = torch.stack(counts)
    winners, shares = (values.tolist() for values in _winners(stacked, share))
    sizes = stacked.sum(1).tolist()

    def rank(place: int) -> tuple[bool, float, int, int]:
        return winners[place] == 0, -shares[place], sizes[place], place

    result = labels.clone()
    deciding = (place for place, winner in enumerate(winners) if winner != KEEP)
    for place in sorted(deciding, key=rank, reverse=True):  # the first in rank is painted last, on top
        result[segments[place]] = winners[place]
    return result


def _winners(counts: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(S, 256) pixels of each label -> (S,) the label that each segment takes or KEEP, and (S,) its share."""
    size = counts.sum(1).clamp(min=1)
    most, label = counts[:, 1:IGNORE].max(1)
    object_share, background_share = most / size, counts[:, 0] / size
    has_class = object_share >= share
    has_background = ~has_class & (counts[:, 0] > most)
    winner = torch.where(has_class, label + 1, torch.where(has_background, 0, KEEP))
    return winner, torch.where(has_class, object_share, background_share)
