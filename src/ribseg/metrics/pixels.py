"""PxAP: average precision of the pixels of localization maps, pooled over a set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from ribseg.functional.pixels import average_precision, pixel_histogram
from ribseg.metrics.confusion import check_target
from ribseg.metrics.sweep import check_maps, sorted_thresholds


class PxAP(Metric):
    """Average precision of pixels: the area under their precision-recall curve, pooled over all maps.

    Choe et al., Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020, section 3.3; equal
    to the authors' program for equal thresholds. Each present class's map is an item of its own, as their
    images have one class.

    Args:
        num_classes: C, without background.
        thresholds: (T,) at which scores are counted. Default: 0, 0.001, ..., 1, as published.
        ignore_index: target label of ignored pixels.

    >>> metric = PxAP(num_classes=2)
    >>> metric.update(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([1]), torch.tensor([[2, 0, 0]]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
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
        published = torch.from_numpy(np.append(np.arange(0, 1, 0.001), 1.0))
        chosen = sorted_thresholds(num_classes, published if thresholds is None else thresholds)
        self.register_buffer("thresholds", chosen, persistent=False)
        zeros = torch.zeros(2, len(chosen) + 1, dtype=torch.int64)
        self.add_state("histogram", zeros, dist_reduce_fx="sum")

    def update(self, maps: Tensor, classes: Tensor, target: Tensor) -> None:
        """Adds one image; arguments and errors as those of `ThresholdSweep.update`."""
        check_maps(maps, classes, target, self.num_classes)
        check_target(target, self.num_classes, self.ignore_index)
        self.histogram += pixel_histogram(maps, classes, target, self.thresholds, self.ignore_index)

    def compute(self) -> Tensor:
        """The average precision, a float64 in [0, 1]; NaN if no map's class is in the masks."""
        return average_precision(self.histogram)
