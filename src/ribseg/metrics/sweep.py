"""Scores of localization maps at all background thresholds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ribseg.functional.evaluation import confusion_from_histogram, scores, threshold_histogram
from ribseg.functional.guards import check_finite_maps
from ribseg.metrics.confusion import check_target


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
        self.num_classes, self.ignore_index = num_classes, ignore_index
        chosen = sorted_thresholds(
            num_classes, torch.linspace(0, 1, 101) if thresholds is None else thresholds
        )
        self.register_buffer("thresholds", chosen.float(), persistent=False)
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
        check_maps(maps, classes, target, self.num_classes)
        check_target(target, self.num_classes, self.ignore_index)
        self.histogram += threshold_histogram(
            maps, classes, target, self.thresholds, self.num_classes, self.ignore_index
        )

    def compute(self) -> dict[str, Tensor]:
        """The sweep: "thresholds" (T,), "miou" (T,), "iou" (T, C+1), "precision" (T,), "recall" (T,).

        And the scalars "best_miou", "best_threshold" (the lowest one for ties). All are fractions in [0, 1];
        classes that are neither in the ground truth nor predicted have IoU NaN and are excluded from means.
        """
        return sweep_of(self.histogram, self.thresholds)


def sorted_thresholds(num_classes: int, thresholds: Tensor | Sequence[float]) -> Tensor:
    """(T,) thresholds, ascending; raises a ValueError unless they and the number of classes are in range."""
    chosen = torch.as_tensor(thresholds)
    if num_classes < 1 or chosen.ndim != 1 or chosen.numel() == 0 or not torch.isfinite(chosen).all():
        raise ValueError(
            f"expected num_classes >= 1 and a non-empty 1-D list of finite thresholds, got {num_classes} "
            f"and {thresholds}"
        )
    return chosen.sort().values


def check_maps(maps: Tensor, classes: Tensor, target: Tensor, num_classes: int) -> None:
    """Raises a ValueError unless maps (K, H, W), classes (K,) and target (H, W) go together."""
    if maps.ndim != 3 or target.shape != maps.shape[1:] or classes.shape != maps.shape[:1]:
        raise ValueError(
            "expected maps (K, H, W), classes (K,) and target (H, W), got "
            f"{tuple(maps.shape)}, {tuple(classes.shape)} and {tuple(target.shape)}; "
            "resize the maps to the mask, not the mask to the maps"
        )
    check_finite_maps(maps)
    if ((classes < 0) | (classes >= num_classes)).any():
        raise ValueError(f"expected classes in [0, {num_classes}), got {classes.tolist()}")
