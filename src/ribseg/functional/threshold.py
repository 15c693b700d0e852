"""A background score without ground truth: Otsu's criterion on the scores of all pixels.

Otsu: A threshold selection method from gray-level histograms, IEEE SMC 1979.
"""

import torch
from torch import Tensor

from ribseg.functional.guards import check_finite_maps


def score_histogram(maps: Tensor, thresholds: Tensor) -> Tensor:
    """Counts the pixels of an image by the number of thresholds below their best score; needs no mask.

    Args:
        maps: (K, H, W) float; for K = 0 all counts are zero.
        thresholds: (T,) ascending.

    Returns:
        (T+1,) int64.

    Raises:
        ValueError: a value is not finite.
    """
    bins = len(thresholds) + 1
    check_finite_maps(maps)
    if len(maps) == 0:
        return torch.zeros(bins, dtype=torch.int64)
    best = maps.amax(0).flatten().to(thresholds.dtype)
    # side="left" counts the thresholds below the score, as in threshold_histogram.
    return torch.bincount(torch.searchsorted(thresholds, best, side="left"), minlength=bins)


def otsu(counts: Tensor, thresholds: Tensor) -> int:
    """The index of Otsu's threshold, which maximizes the variance between the groups below and above it.

    Pass counts summed over images: a single image may be all object. Of several equally good thresholds, as
    in a gap between two peaks, the middle one is taken.

    Args:
        counts: (T+1,) sum of `score_histogram`.
        thresholds: (T,) ascending.

    Returns:
        Index into `thresholds`.

    Raises:
        ValueError: all counts are zero, or the lengths do not match.

    >>> otsu(torch.tensor([0, 8, 0, 0, 2]), torch.tensor([0.0, 0.2, 0.4, 0.6]))
    2
    """
    if counts.shape != (len(thresholds) + 1,) or not counts.any():
        raise ValueError(
            f"expected counts of {len(thresholds) + 1} bins that are not all zero, got shape "
            f"{tuple(counts.shape)} with the sum {int(counts.sum())}; were all images without a class?"
        )
    numbers, edges = counts.double(), thresholds.double()
    # The score of a bin is its center; the outer bins are represented by the first and last threshold.
    middle = torch.cat([edges[:1], (edges[:-1] + edges[1:]) / 2, edges[-1:]])
    below, mass = numbers.cumsum(0)[:-1], (numbers * middle).cumsum(0)[:-1]
    total, moment = numbers.sum(), (numbers * middle).sum()
    sizes = below * (total - below)  # zero where all pixels lie on one side
    spread = torch.where(sizes > 0, (moment * below / total - mass) ** 2 / sizes.clamp(min=1), 0)
    best = (spread >= spread.max() * (1 - 1e-9)).nonzero().flatten()
    return int(best[len(best) // 2])
