"""MaxBoxAccV2: the accuracy of boxes around the parts of localization maps above a threshold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from ribseg.checks import check_numbers
from ribseg.functional.boxes import box_iou
from ribseg.metrics.sweep import sorted_thresholds

LEVELS = 255  # maps are judged in 8 bit
FRAGMENT = 0.1  # smallest part of an object, as a share of the class's largest region in the image


def boxes_at_thresholds(scores: Tensor, thresholds: Tensor) -> list[Tensor]:
    """The boxes around all contours of a map above each threshold, as in the program of Choe et al.

    The map is rounded down to 8 bit; a pixel is above the threshold t if it exceeds t times the maximum,
    rounded down as well. Contours are those of OpenCV, of holes too. x1 and y1 are the first column and row
    after the contour, or the image's last one.

    Args:
        scores: (H, W) float in [0, 1].
        thresholds: (T,) in [0, 1].

    Returns:
        T tensors (N, 4) int64, x0, y0, x1, y1. Where nothing is above the threshold the only box is the pixel
        at the upper left corner.
    """
    levels = (scores.double().cpu().numpy() * LEVELS).astype(np.uint8)
    # Rounded as in Python, in double precision: 0.29 * 100 is 28.999..., in single precision 29.
    cuts = [int(threshold * int(levels.max())) for threshold in thresholds.double().tolist()]
    found = {cut: _contour_boxes(levels > cut) for cut in set(cuts)}  # at most 256 different ones
    return [found[cut] for cut in cuts]


def true_boxes(target: Tensor, label: int) -> Tensor:
    """The boxes around the regions of a label in a mask, for want of boxes of objects.

    Regions are connected by sides and corners; those with less than a tenth of the largest one's pixels are
    left out, as what is seen between others of an object behind them. The boxes end as those of
    `boxes_at_thresholds`, so that a map that equals the mask has IoU 1.

    Args:
        target: (H, W) int.
        label: of a class, c + 1.

    Returns:
        (N, 4) int64; N is 0 if the label does not occur.
    """
    import cv2

    region = (target == label).cpu().numpy().astype(np.uint8)
    height, width = region.shape
    _, _, found, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
    parts = found[1:]
    if not len(parts):
        return torch.zeros(0, 4, dtype=torch.int64)
    area = parts[:, cv2.CC_STAT_AREA]
    left, top, wide, high = parts[area >= FRAGMENT * area.max(), :4].astype(np.int64).T
    ends = np.minimum(left + wide, width - 1), np.minimum(top + high, height - 1)
    return torch.from_numpy(np.stack([left, top, *ends], 1))


class MaxBoxAccV2(Metric):
    """Box accuracy of localization maps: the best over thresholds, averaged over three limits of the IoU.

    At a threshold a map is right if any of its boxes overlaps with any true box by the limit. For each limit
    the best threshold counts. Choe et al., Evaluation for Weakly Supervised Object Localization: Protocol,
    Metrics, and Datasets, TPAMI 2022, section 3; equal to the authors' program for equal thresholds.

    Args:
        thresholds: (T,) in [0, 1]. Default: 0, 0.001, ..., 0.999, as published.
        limits: of the IoU.

    >>> metric = MaxBoxAccV2()
    >>> target = torch.zeros(20, 20, dtype=torch.int64); target[5:15, 2:12] = 3
    >>> metric.update((target == 3).float()[None], [true_boxes(target, 3)])
    >>> metric.compute()["mean"]
    tensor(1., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    hits: Tensor
    items: Tensor

    def __init__(
        self,
        thresholds: Tensor | Sequence[float] | None = None,
        limits: Sequence[float] = (0.3, 0.5, 0.7),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_numbers("limits", limits, above=0, high=1)
        self.limits = tuple(limits)
        chosen = torch.from_numpy(np.arange(0, 1, 0.001)) if thresholds is None else thresholds
        self.register_buffer("thresholds", sorted_thresholds(1, chosen).double(), persistent=False)
        zeros = torch.zeros(len(self.limits), len(self.thresholds), dtype=torch.int64)
        self.add_state("hits", zeros, dist_reduce_fx="sum")
        self.add_state("items", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: Tensor, boxes: Sequence[Tensor]) -> None:
        """Adds the maps of one image, each with the boxes of its class.

        Args:
            maps: (K, H, W) float in [0, 1]; K may be 0.
            boxes: K tensors (N, 4) int, x0, y0, x1, y1; maps without a box are left out.

        Raises:
            ValueError: shapes do not match, or a map is not in [0, 1].
        """
        hits, items = box_hits(maps, boxes, self.thresholds, self.limits)
        self.hits += hits.to(self.hits.device)
        self.items += items

    def compute(self) -> dict[str, Tensor]:
        """The accuracies: "per_limit" (L,), each at its best "threshold" (L,), and their "mean".

        Fractions in [0, 1], float64; NaN without any map that has a box.
        """
        return box_accuracy(self.hits, self.items, self.thresholds)


def box_hits(
    maps: Tensor, boxes: Sequence[Tensor], thresholds: Tensor, limits: Sequence[float]
) -> tuple[Tensor, int]:
    """(L, T) int64, the number of an image's maps that are right, and the number of maps with a box.

    Arguments and errors as `MaxBoxAccV2.update`.
    """
    if maps.ndim != 3 or len(maps) != len(boxes):
        raise ValueError(
            f"expected maps (K, H, W) and K tensors of boxes, got {tuple(maps.shape)} and {len(boxes)}"
        )
    if not ((maps >= 0) & (maps <= 1)).all():  # false for NaN, too
        raise ValueError("expected maps in [0, 1]; divide each by its maximum")
    hits, items = torch.zeros(len(limits), len(thresholds), dtype=torch.int64), 0
    bounds = torch.tensor(limits, dtype=torch.float64)[:, None]
    for scores, true in zip(maps, boxes, strict=True):
        if len(true):
            found = boxes_at_thresholds(scores, thresholds)
            best = {id(each): box_iou(each, true.cpu()).max() for each in found}
            hits += torch.stack([best[id(each)] for each in found]) >= bounds
            items += 1
    return hits, items


def box_accuracy(hits: Tensor, items: Tensor | int, thresholds: Tensor) -> dict[str, Tensor]:
    """The result of `MaxBoxAccV2.compute` from (L, T) hits among a number of items."""
    accuracy = hits.double() / torch.as_tensor(items).double()
    best = accuracy.nan_to_num(-1.0).argmax(1)
    per_limit = accuracy.gather(1, best[:, None])[:, 0]
    return {"per_limit": per_limit, "threshold": thresholds[best], "mean": per_limit.mean()}


def _contour_boxes(above: np.ndarray) -> Tensor:
    import cv2

    height, width = above.shape
    contours, _ = cv2.findContours(above.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return torch.zeros(1, 4, dtype=torch.int64)
    left, top, wide, high = np.array([cv2.boundingRect(contour) for contour in contours], np.int64).T
    ends = np.minimum(left + wide, width - 1), np.minimum(top + high, height - 1)
    return torch.from_numpy(np.stack([left, top, *ends], 1))
