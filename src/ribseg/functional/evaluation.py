"""Exact evaluation of localization maps at all thresholds in one pass."""

from typing import NamedTuple

import torch
from torch import Tensor

from ribseg.functional.guards import check_ascending, check_class_maps

TENTHS = 10  # bins of an object's pixels, by distance from the maximum of its map


class Scores(NamedTuple):
    """Scores of a stack of confusion matrices; leading dimensions `...` are kept.

    Attributes:
        iou: (..., C+1); NaN where a class is neither in the ground truth nor predicted.
        miou: (...), mean of `iou` over the classes that are not NaN; NaN where the ground truth has no
            foreground pixel, where empty maps would score 1.
        precision: (...), mean over foreground classes that were predicted somewhere; 0 if none was.
        recall: (...), mean over foreground classes that are in the ground truth.
    """

    iou: Tensor
    miou: Tensor
    precision: Tensor
    recall: Tensor


class ClassErrors(NamedTuple):
    """False positives and false negatives of each label: what its IoU lacks.

    Attributes:
        false_positive: (..., C+1), pixels that are predicted wrongly as a label, as a share of the union of
            its predicted and its true pixels; NaN where a label is neither in the ground truth nor predicted.
        false_negative: (..., C+1), pixels of a label that are predicted as another, as a share of the same
            union. IoU, `false_positive` and `false_negative` add up to one.
    """

    false_positive: Tensor
    false_negative: Tensor


def threshold_histogram(
    maps: Tensor, classes: Tensor, target: Tensor, thresholds: Tensor, num_classes: int, ignore_index: int
) -> Tensor:
    """Counts pixels of one image by (best class, true label, number of thresholds below its score).

    A pixel is background at threshold t unless its best score exceeds t, so this histogram contains the
    confusion matrices of all thresholds: see `confusion_from_histogram`.

    Args:
        maps: (K, H, W) float, normalised maps of the present classes; K may be 0.
        classes: (K,) int, their indices (0 = first class).
        target: (H, W) int, 0 = background, c + 1 = class c.
        thresholds: (T,) ascending.
        num_classes: C, without background.
        ignore_index: label in `target` of ignored pixels.

    Returns:
        (C+1, C+1, T+1) int64 counts; first axis: best class + 1, second: true label. Pixels of an image
        without classes are counted at index 0 of the first axis.
    """
    check_class_maps(maps, classes)
    check_ascending(thresholds)
    valid = target != ignore_index
    labels = target[valid].to(torch.int64)
    best, exceeded = _best_labels(maps[:, valid], classes, thresholds)
    size, bins = num_classes + 1, thresholds.numel() + 1
    flat = (best * size + labels) * bins + exceeded
    return torch.bincount(flat, minlength=size * size * bins).reshape(size, size, bins)


def distance_tenths(peaks: Tensor, classes: Tensor, target: Tensor) -> Tensor:
    """Divides the pixels of each class into ten bins by distance from the maximum of the class's map.

    The maximum of a CAM marks the most discriminative part of the object, so the bins go from there to the
    non-discriminative parts (RIB paper, section 4.2).

    Args:
        peaks: (K, H, W) maps.
        classes: (K,) int, their indices (0 = first class).
        target: (H, W) int, 0 = background, c + 1 = class c.

    Returns:
        (H, W) int64: 0 for the nearest tenth to 9 for the farthest; -1 for pixels of other labels. With
        fewer than ten pixels some bins are empty.

    >>> distance_tenths(torch.tensor([[[0.0, 0.9, 0.1]]]), torch.tensor([0]), torch.tensor([[1, 1, 0]]))
    tensor([[ 5,  0, -1]])
    """
    tenths = torch.full(target.shape, -1, dtype=torch.int64)
    for peak, index in zip(peaks, classes.tolist(), strict=True):
        pixels = (target == index + 1).nonzero()
        row, column = divmod(int(peak.argmax()), peak.shape[1])
        distances = (pixels - torch.tensor([row, column])).square().sum(1)
        order = distances.argsort(stable=True).argsort()
        tenths[pixels[:, 0], pixels[:, 1]] = order * TENTHS // max(len(pixels), 1)
    return tenths


def coverage_histogram(
    maps: Tensor, classes: Tensor, target: Tensor, tenths: Tensor, thresholds: Tensor
) -> Tensor:
    """Counts object pixels of one image by (tenth, number of thresholds at which the label is correct).

    Args:
        maps: see `threshold_histogram`.
        classes: see `threshold_histogram`.
        target: see `threshold_histogram`.
        tenths: (H, W), see `distance_tenths`.
        thresholds: (T,) ascending.

    Returns:
        (10, T+1) int64.
    """
    bins, inside = thresholds.numel() + 1, tenths >= 0
    best, exceeded = _best_labels(maps[:, inside], classes, thresholds)
    found = exceeded * (best == target[inside])
    return torch.bincount(tenths[inside] * bins + found, minlength=TENTHS * bins).reshape(TENTHS, bins)


def confusion_from_histogram(histogram: Tensor) -> Tensor:
    """(C+1, C+1, T+1) histogram -> (T, C+1, C+1) confusion matrices, rows predicted, columns true."""
    # At threshold i a pixel is foreground if its score exceeds more than i thresholds: bins i+1 and above.
    above = histogram.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    confusion = above.permute(2, 0, 1).clone()
    # All other pixels are background; those of images without classes are in bin 0, never above.
    confusion[:, 0] = histogram.sum((0, 2)) - above.sum(0).T
    return confusion


def scores(confusion: Tensor) -> Scores:
    """IoU, mIoU, precision and recall of confusion matrices.

    Args:
        confusion: (..., C+1, C+1) counts, rows predicted, columns true.
    """
    counts = confusion.double()
    hit, predicted, true = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2)
    return scores_from_counts(hit, predicted, true)


def scores_from_counts(hit: Tensor, predicted: Tensor, true: Tensor) -> Scores:
    """As `scores`, from (..., C+1) counts of true positives, predicted pixels and true pixels."""
    iou = hit / (predicted + true - hit)  # 0/0 = nan: the class occurs nowhere
    precision, recall = (_mean((hit / all_)[..., 1:]).nan_to_num(0.0) for all_ in (predicted, true))
    scored = true[..., 1:].sum(-1) > 0
    return Scores(iou, _mean(iou).where(scored, torch.nan), precision, recall)


def class_errors(hit: Tensor, predicted: Tensor, true: Tensor) -> ClassErrors:
    """False positives and negatives of each label, as shares of its union.

    Args:
        hit: (..., C+1) number of true positives.
        predicted: (..., C+1) number of predicted pixels.
        true: (..., C+1) number of true pixels.

    >>> [float(share) for share in class_errors(torch.tensor([2]), torch.tensor([3]), torch.tensor([7]))]
    [0.125, 0.625]
    """
    hit, predicted, true = hit.double(), predicted.double(), true.double()
    union = predicted + true - hit
    return ClassErrors((predicted - hit) / union, (true - hit) / union)


def _best_labels(maps: Tensor, classes: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """(K, P) maps of P pixels -> the label of the best class, and the number of thresholds below its score.

    Both are (P,) int64, and zero for an image without classes.
    """
    if maps.shape[0] == 0:
        zeros = torch.zeros(maps.shape[1], dtype=torch.int64, device=maps.device)
        return zeros, zeros
    dtype = torch.promote_types(maps.dtype, thresholds.dtype)
    score, index = maps.to(dtype).max(0)
    # side="left" counts the thresholds below the score: ties go to the background, as in argmax.
    exceeded = torch.searchsorted(thresholds.to(dtype), score, side="left")
    return classes.to(torch.int64)[index] + 1, exceeded


def _mean(values: Tensor) -> Tensor:
    # The order of summation depends on the memory layout; a fixed one makes all callers agree to the bit.
    return values.contiguous().nanmean(-1)
