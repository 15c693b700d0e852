"""Metrics of localization maps and masks, as in VOC from one confusion matrix over the whole set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from ribseg.checks import check_number
from ribseg.functional.evaluation import (
    Scores,
    confusion_from_histogram,
    scores,
    scores_from_counts,
    threshold_histogram,
)

BLOCK = 2**22  # bootstrap weights computed at a time: 64 MB


def sweep_of(histogram: Tensor, thresholds: Tensor) -> dict[str, Tensor]:
    """The scores of a summed histogram at all thresholds; see `ThresholdSweep.compute`.

    Args:
        histogram: (C+1, C+1, T+1) int, the sum of `threshold_histogram` over images.
        thresholds: (T,), ascending.
    """
    result = scores(confusion_from_histogram(histogram))
    best = int(result.miou.nan_to_num(-1.0).argmax())
    return {
        "thresholds": thresholds,
        **result._asdict(),
        "best_miou": result.miou[best],
        "best_threshold": thresholds[best],
    }


class ThresholdSweep(Metric):
    """mIoU, precision and recall of localization maps at every background threshold, exact and in one pass.

    A pixel has the class of its highest map if that exceeds the threshold, else it is background. The cost of
    `update` does not depend on the number of thresholds.

    Args:
        num_classes: C, without background.
        thresholds: (T,) background scores; sorted on construction. Default: 0, 0.01, ..., 1.
        ignore_index: target label of ignored pixels.

    >>> sweep = ThresholdSweep(num_classes=2, thresholds=torch.tensor([0.3, 0.6]))
    >>> maps = torch.tensor([[[0.9, 0.5, 0.1]]])
    >>> sweep.update(maps, torch.tensor([1]), torch.tensor([[2, 2, 0]]))
    >>> sweep.compute()["miou"]
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    histogram: Tensor

    def __init__(
        self,
        num_classes: int,
        thresholds: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        chosen = torch.linspace(0, 1, 101) if thresholds is None else torch.as_tensor(thresholds)
        if num_classes < 1 or chosen.ndim != 1 or chosen.numel() == 0 or not torch.isfinite(chosen).all():
            raise ValueError(
                f"expected num_classes >= 1 and a non-empty 1-D list of finite thresholds, got {num_classes} "
                f"and {thresholds}"
            )
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.register_buffer("thresholds", chosen.float().sort().values, persistent=False)
        size = num_classes + 1
        zeros = torch.zeros(size, size, chosen.numel() + 1, dtype=torch.int64)
        self.add_state("histogram", zeros, dist_reduce_fx="sum")

    def update(self, maps: Tensor, classes: Tensor, target: Tensor) -> None:
        """Adds one image.

        Args:
            maps: (K, H, W) float, normalised; K may be 0.
            classes: (K,) int class indices, 0 = first class.
            target: (H, W) int, 0 = background, c + 1 = class c, `ignore_index` = ignored.

        Raises:
            ValueError: shapes do not match, an index is out of range, or a map is not finite.
        """
        self._validate(maps, classes, target)
        self.histogram += threshold_histogram(
            maps, classes, target, self.thresholds, self.num_classes, self.ignore_index
        )

    def compute(self) -> dict[str, Tensor]:
        """The sweep: "thresholds" (T,), "miou" (T,), "iou" (T, C+1), "precision" (T,), "recall" (T,).

        And the scalars "best_miou", "best_threshold" (the lowest one for ties). All are fractions in [0, 1];
        classes that are neither in the ground truth nor predicted have IoU NaN and are excluded from means.
        """
        return sweep_of(self.histogram, self.thresholds)

    def _validate(self, maps: Tensor, classes: Tensor, target: Tensor) -> None:
        if maps.ndim != 3 or target.shape != maps.shape[1:] or classes.shape != maps.shape[:1]:
            raise ValueError(
                "expected maps (K, H, W), classes (K,) and target (H, W), got "
                f"{tuple(maps.shape)}, {tuple(classes.shape)} and {tuple(target.shape)}; "
                "resize the maps to the mask, not the mask to the maps"
            )
        if not maps.is_floating_point() or not torch.isfinite(maps).all():
            raise ValueError(
                f"expected finite float maps, got {maps.dtype} with NaN or infinity, or integers"
            )
        if ((classes < 0) | (classes >= self.num_classes)).any():
            raise ValueError(f"expected classes in [0, {self.num_classes}), got {classes.tolist()}")
        check_target(target, self.num_classes, self.ignore_index)


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
    valid = target != ignore_index
    predicted, true = prediction[valid].long(), target[valid].long()
    size = num_classes + 1
    columns = (true[predicted == true], predicted[predicted != ignore_index], true)
    return torch.stack([torch.bincount(column, minlength=size) for column in columns])


def pooled_scores(counts: Tensor) -> Scores:
    """Scores of a set from the (N, 3, C+1) `label_counts` of its images."""
    return scores_from_counts(*counts.sum(0).double().unbind(0))


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
