"""Scores of masks from one confusion matrix over the whole set, and the counts of single images."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ribseg.functional.evaluation import ClassErrors, Scores, class_errors, scores, scores_from_counts
from ribseg.functional.guards import check_same_shape


class MaskConfusion(Metric):
    """One confusion matrix over all masks of a set, summed over processes.

    Args:
        num_classes: C, without background.
        ignore_index: target label of ignored pixels.

    >>> metric = MaskConfusion(num_classes=1)
    >>> metric.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 255]]))
    >>> metric.compute().miou
    tensor(1., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        zeros = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds one image; see `confusion_matrix`."""
        check_target(target, self.num_classes, self.ignore_index)
        self.confusion += confusion_matrix(prediction, target, self.num_classes, self.ignore_index)

    def compute(self) -> Scores:
        """The scores of the set."""
        return scores(self.confusion)

    def errors(self) -> ClassErrors:
        """The false positives and false negatives of each class of the set."""
        return class_errors(*counts_of(self.confusion))


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """(C+1, C+1) int64 counts of pixels, rows predicted, columns true.

    Args:
        prediction: (H, W) int in 0..C, 0 = background.
        target: (H, W) int, the same, with `ignore_index`.
        num_classes: C, without background.
        ignore_index: target label of ignored pixels.

    Raises:
        ValueError: shapes differ, or a prediction is out of range.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"expected equal mask shapes, got {tuple(prediction.shape)}, {tuple(target.shape)}")
    if prediction.is_floating_point():
        raise ValueError(f"expected a prediction of integers, got {prediction.dtype}")
    check_target(target, num_classes, ignore_index)
    valid = target != ignore_index
    predicted, true = prediction[valid].long(), target[valid].long()
    if len(predicted) and not 0 <= int(predicted.min()) <= int(predicted.max()) <= num_classes:
        raise ValueError(
            f"expected predicted labels 0..{num_classes}, got {predicted.unique().tolist()[-5:]}; 255 is not "
            "a valid prediction"
        )
    size = num_classes + 1
    flat = predicted * size + true
    return torch.bincount(flat, minlength=size * size).reshape(size, size)


def counts_of(confusion: Tensor) -> Tensor:
    """(C+1, C+1) confusion matrix -> (3, C+1) counts as from `label_counts`."""
    return torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])


def check_target(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Raises a ValueError unless all labels of a mask are in 0..num_classes or `ignore_index`."""
    if target.is_floating_point():
        raise ValueError(f"expected an integer target, got {target.dtype}")
    bad = (target != ignore_index) & ((target < 0) | (target > num_classes))
    if bad.any():
        found = target[bad].unique().tolist()
        raise ValueError(
            f"expected target labels 0..{num_classes} or {ignore_index} (ignore), got also {found[:5]}; "
            "is this the mask of another data set?"
        )


def label_counts(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """(3, C+1) int64: true positives, predicted pixels and true pixels per label of one image.

    A pixel with `ignore_index` in the prediction is a false negative of its true label.

    Args:
        prediction: (H, W) int, 0 = background, `ignore_index` = no prediction (possible in pseudo masks).
        target: (H, W) int, the same, with `ignore_index`.
        num_classes: C, without background.
        ignore_index: target label of ignored pixels.
    """
    check_same_shape(prediction, target, "prediction and target")
    valid = target != ignore_index
    predicted, true = prediction[valid].long(), target[valid].long()
    size = num_classes + 1
    columns = (true[predicted == true], predicted[predicted != ignore_index], true)
    return torch.stack([torch.bincount(column, minlength=size) for column in columns])


def pooled_scores(counts: Tensor) -> Scores:
    """Scores of a set from the (N, 3, C+1) `label_counts` of its images."""
    return scores_from_counts(*counts.sum(0).double().unbind(0))
