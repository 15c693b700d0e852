"""Average precision of the pixels of localization maps (PxAP)."""

import torch
from torch import Tensor

from ribseg.functional.guards import check_ascending, check_class_maps


def pixel_histogram(
    maps: Tensor, classes: Tensor, target: Tensor, thresholds: Tensor, ignore_index: int = 255
) -> Tensor:
    """Counts the pixels of an image's maps by whether they are of the map's class, and by their score.

    Each map is judged on its own: pixels of other classes are negative. So an image with several classes
    counts as several, and classes do not compete, unlike in mIoU.

    Args:
        maps: (K, H, W) float in [0, 1]; K may be 0.
        classes: (K,) int, their indices (0 = first class).
        target: (H, W) int, 0 = background, c + 1 = class c.
        thresholds: (T,) ascending.
        ignore_index: label in `target` of ignored pixels.

    Returns:
        (2, T+1) int64: row 0 pixels of other labels, row 1 of the class; by the number of thresholds that are
        at most the score.
    """
    check_class_maps(maps, classes)
    check_ascending(thresholds)
    bins = thresholds.numel() + 1
    valid = target != ignore_index
    scores = maps[:, valid].to(torch.promote_types(maps.dtype, thresholds.dtype))
    reached = torch.searchsorted(thresholds.to(scores.dtype), scores.contiguous(), side="right")
    positive = target[valid].to(torch.int64) == classes.to(torch.int64)[:, None] + 1
    flat = positive.to(torch.int64) * bins + reached
    return torch.bincount(flat.flatten(), minlength=2 * bins).reshape(2, bins)


def average_precision(histogram: Tensor) -> Tensor:
    """The area under the precision-recall curve of pixels: the sum of precision times the step in recall.

    Choe et al., Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020, section 3.3
    (PxAP).

    Args:
        histogram: (2, B) counts of negative and positive pixels by ascending score, see `pixel_histogram`.

    Returns:
        Scalar float64 in [0, 1]; NaN without positive pixels.

    >>> average_precision(torch.tensor([[3, 1, 0], [0, 1, 1]]))
    tensor(0.8333, dtype=torch.float64)
    """
    negative, positive = histogram.flip(-1).cumsum(-1).double()
    precision = positive / (positive + negative).clamp(min=1)  # without any pixel the recall makes no step
    recall = positive / positive[-1]
    return (precision * recall.diff(prepend=recall.new_zeros(1))).sum()
