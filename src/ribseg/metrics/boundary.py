"""Boundary F-score of masks, pooled over a set."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ribseg.checks import check_number
from ribseg.functional.boundary import TOLERANCE, boundary_counts, boundary_f
from ribseg.metrics.confusion import check_target


class BoundaryF(Metric):
    """The boundary F-score of each class and their mean, pooled over all masks.

    Pixels of the boundaries of prediction and ground truth match within a distance; F is the harmonic mean of
    the shares that match (Csurka et al., BMVC 2013). See `ribseg.functional.boundary_counts`.

    Args:
        num_classes: C, without background.
        tolerance: the distance, as a share of the image's diagonal, in [0, 1]; at least one pixel.
        ignore_index: target label of ignored pixels.

    >>> metric = BoundaryF(num_classes=1)
    >>> metric.update(torch.tensor([[0, 0, 1, 1, 1, 1]]), torch.tensor([[0, 1, 1, 1, 1, 1]]))
    >>> metric.compute()["mean"]
    tensor(1., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(
        self, num_classes: int, tolerance: float = TOLERANCE, ignore_index: int = 255, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_number("num_classes", num_classes, low=1, whole=True)
        check_number("tolerance", tolerance, low=0, high=1)
        self.num_classes, self.tolerance, self.ignore_index = num_classes, tolerance, ignore_index
        self.add_state("counts", torch.zeros(4, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds one image.

        Args:
            prediction: (H, W) int, 0 = background, c + 1 = class c, `ignore_index` = no prediction.
            target: (H, W) int, the same.

        Raises:
            ValueError: shapes differ, or a label is out of range.
        """
        for mask in (prediction, target):
            check_target(mask, self.num_classes, self.ignore_index)
        counts = boundary_counts(prediction, target, self.num_classes, self.tolerance, self.ignore_index)
        self.counts += counts.to(self.counts.device)

    def compute(self) -> dict[str, Tensor]:
        """The scores: "per_class" (C,), NaN for classes without any boundary, and their "mean"."""
        per_class = boundary_f(self.counts)
        return {"per_class": per_class, "mean": per_class.nanmean()}
