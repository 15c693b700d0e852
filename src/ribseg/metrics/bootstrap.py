"""Bootstrap over images: intervals of scores, and of differences on the same images."""

import numpy as np
import torch
from torch import Tensor

from ribseg.checks import check_number
from ribseg.functional.evaluation import scores_from_counts

BLOCK = 2**22  # bootstrap weights computed at a time: 64 MB


def bootstrap_miou(counts: Tensor, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """The mIoU of bootstrap samples of the images.

    Args:
        counts: (N, 3, C+1) `label_counts`.
        resamples: number of samples of N images with replacement, at least 1.
        seed: equal seeds give equal samples, for paired comparisons of methods on the same images.

    Returns:
        (resamples,) float64 mIoU values; NaN for a sample without foreground pixels.

    Raises:
        ConfigError: resamples is not an integer >= 1.
    """
    check_number("resamples", resamples, low=1, whole=True)
    number = counts.shape[0]
    generator = np.random.default_rng(seed)
    flat, block = counts.flatten(1).double(), max(1, BLOCK // max(number, 1))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    uniform = np.full(number, 1 / number)
    drawn = torch.cat(
        [torch.from_numpy(generator.multinomial(number, uniform, size)).double() @ flat for size in sizes]
    )
    return scores_from_counts(*drawn.unflatten(1, counts.shape[1:]).unbind(1)).miou.numpy()


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central interval of bootstrap values, without NaN."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
