"""Evaluation of localization maps on one split: all thresholds in one pass, with bootstrap intervals.

The scores are defined in docs/method.md, section 4.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ribseg.data.io.maps import LocalizationMaps
from ribseg.errors import DataError
from ribseg.functional.cam import resize
from ribseg.functional.evaluation import TENTHS, coverage_histogram, threshold_histogram
from ribseg.functional.pixels import average_precision, pixel_histogram
from ribseg.functional.threshold import otsu, score_histogram
from ribseg.metrics import (
    ThresholdSweep,
    bootstrap_miou,
    by_number_of_classes,
    by_object_size,
    check_target,
    interval,
    pooled_scores,
    sweep_of,
    true_boxes,
)
from ribseg.metrics.boxes import box_accuracy, box_hits
from ribseg.metrics.masks import NOTHING_SCORED, error_shares, known

LIMITS = (0.3, 0.5, 0.7)  # of the IoU of boxes, as published


class ImageCounts(NamedTuple):
    """Counts of one image for `MapEvaluator`.

    Attributes:
        labels: (C+1, C+1, T+1) int64, see `functional.threshold_histogram`.
        scores: (T+1,) int64, see `functional.threshold.score_histogram`; independent of the mask.
        pixels: (2, T+1) int64, see `functional.pixels.pixel_histogram`.
        coverage: (10, T+1) int64, see `functional.evaluation.coverage_histogram`; None without tenths.
        boxes: (3, T) int64, see `metrics.boxes.box_hits`; None if boxes are not measured.
        boxed: number of maps whose class has a box in the mask.
    """

    labels: Tensor
    scores: Tensor
    pixels: Tensor
    coverage: Tensor | None = None
    boxes: Tensor | None = None
    boxed: int = 0


class MapEvaluator:
    """Evaluates the maps of one method (CAM, RIB, a control) on one split.

    It keeps a sparse histogram per image for scores and bootstrap at any threshold, so maps are read once.

    Args:
        num_classes: C, without background.
        thresholds: (T,) background scores.
        ignore_index: mask label of ignored pixels.
        boxes: also measure boxes (MaxBoxAccV2), which takes most of the time.
    """

    def __init__(
        self, num_classes: int, thresholds: Tensor, ignore_index: int = 255, boxes: bool = False
    ) -> None:
        self.metric = ThresholdSweep(num_classes, thresholds, ignore_index)  # checks and sorts the thresholds
        self._histogram = self.metric.histogram.clone()
        self._scores = torch.zeros(len(thresholds) + 1, dtype=torch.int64)
        self._coverage = torch.zeros(TENTHS, len(thresholds) + 1, dtype=torch.int64)
        self._pixels = torch.zeros(2, len(thresholds) + 1, dtype=torch.int64)
        self._boxes = torch.zeros(len(LIMITS), len(thresholds), dtype=torch.int64) if boxes else None
        self._boxed = 0
        self._entries: list[np.ndarray] = []
        self._numbers: list[int] = []

    def count(self, maps: LocalizationMaps, target: Tensor, tenths: Tensor | None = None) -> ImageCounts:
        """Returns the counts of one image; thread-safe, does not change the evaluator.

        Args:
            maps: of the image.
            target: (H, W) int, its mask.
            tenths: (H, W), see `functional.evaluation.distance_tenths`; None skips the coverage.
        """
        metric = self.metric
        check_target(target, metric.num_classes, metric.ignore_index)
        full = full_size(maps, (target.shape[0], target.shape[1]))
        labels = threshold_histogram(
            full, maps.classes, target, metric.thresholds, metric.num_classes, metric.ignore_index
        )
        coverage = None
        if tenths is not None:
            coverage = coverage_histogram(full, maps.classes, target, tenths, metric.thresholds)
        pixels = pixel_histogram(full, maps.classes, target, metric.thresholds, metric.ignore_index)
        boxes, boxed = None, 0
        if self._boxes is not None:
            true = [true_boxes(target, label) for label in (maps.classes + 1).tolist()]
            boxes, boxed = box_hits(full.float().clamp(0, 1), true, metric.thresholds, LIMITS)
        return ImageCounts(labels, score_histogram(full, metric.thresholds), pixels, coverage, boxes, boxed)

    def add(self, counts: ImageCounts, classes: int = 1) -> None:
        """Adds the counts of an image.

        Args:
            counts: from `count`.
            classes: number of its image-level labels.
        """
        self._numbers.append(classes)
        if counts.coverage is not None:
            self._coverage += counts.coverage
        if self._boxes is not None and counts.boxes is not None:
            self._boxes += counts.boxes
            self._boxed += counts.boxed
        self._pixels += counts.pixels
        self._histogram += counts.labels
        self._scores += counts.scores
        index = counts.labels.nonzero()
        values = counts.labels[tuple(index.T)]
        self._entries.append(torch.cat([index, values[:, None]], 1).numpy().astype(np.int32))

    def sweep(self) -> dict[str, Tensor]:
        """Returns `ThresholdSweep.compute`; raises a DataError if the masks have no foreground pixels."""
        result = sweep_of(self._histogram, self.metric.thresholds)
        if result["miou"].isnan().all():
            raise DataError(NOTHING_SCORED)
        return result

    def unsupervised_threshold(self) -> float | None:
        """The threshold of `functional.threshold.otsu` from the maps only; None if no image has a class."""
        if not self._scores.any():
            return None
        thresholds = self.metric.thresholds
        return round(float(thresholds[otsu(self._scores, thresholds)]), 6)

    def counts(self, threshold: float) -> Tensor:
        """(N, 3, C+1) `label_counts` of the images at one of the thresholds."""
        place = self._place(threshold)
        counts = np.zeros((len(self._entries), 3, self.metric.num_classes + 1), dtype=np.int64)
        for image, entries in zip(counts, self._entries, strict=True):
            best, true, exceeded, pixels = entries.T
            predicted = np.where(exceeded > place, best, 0)
            np.add.at(image[0], true[predicted == true], pixels[predicted == true])
            np.add.at(image[1], predicted, pixels)
            np.add.at(image[2], true, pixels)
        return torch.from_numpy(counts)

    def coverage(self, threshold: float) -> list[float] | None:
        """The fraction of object pixels with the correct label at one of the thresholds, by tenth.

        Tenths are ordered from the nearest to the farthest pixels of an object from its CAM's maximum, and
        pooled over all objects. None if no tenths were counted.
        """
        total = self._coverage.sum(1)
        if not total.any():
            return None
        covered = self._coverage[:, self._place(threshold) + 1 :].sum(1)
        return (covered / total.clamp(min=1)).tolist()

    def by_number_of_classes(self, threshold: float) -> list[dict[str, Any]]:
        """Number of images and mIoU at one of the thresholds, for images with 1, 2, and 3 or more classes.

        The mIoU is None if the masks of a group have no foreground pixels.
        """
        return by_number_of_classes(self.counts(threshold), self._numbers)

    def box_accuracy(self) -> dict[str, Any] | None:
        """MaxBoxAccV2 of the maps; None if boxes are not measured, or no map's class is in its mask.

        Returns:
            "mean", and "per_limit" and "threshold" of each of "limits".
        """
        if self._boxes is None or not self._boxed:
            return None
        found = box_accuracy(self._boxes, self._boxed, self.metric.thresholds)
        thresholds = [round(value, 6) for value in found["threshold"].tolist()]
        result: dict[str, Any] = {"mean": float(found["mean"]), "limits": list(LIMITS)}
        return result | {"per_limit": found["per_limit"].tolist(), "threshold": thresholds}

    def _place(self, threshold: float) -> int:
        return int((self.metric.thresholds - threshold).abs().argmin())

    def summary(self, fixed_threshold: float | None, resamples: int, seed: int) -> dict[str, Any]:
        """Plain values for the table and `results.json`.

        Args:
            fixed_threshold: chosen independently of this split; None skips the values at this threshold.
            resamples: of the bootstrap over images.
            seed: of the bootstrap.

        Returns:
            "images"; "best_miou", "best_threshold", and "precision", "recall", "iou" at this threshold;
            "fixed_threshold", "miou_at_fixed", "iou_at_fixed", "interval_at_fixed" (95 %);
            "unsupervised_threshold" (chosen without masks), "miou_unsupervised"; at the fixed, else the best
            threshold: "coverage", "by_number_of_classes", "by_object_size", and the lists per label
            "false_positive_per_class", "false_negative_per_class"; over all thresholds "pxap",
            "max_box_acc_v2" (`box_accuracy`), and "curve" with lists over all "thresholds" of "miou",
            "precision" and "recall". Fractions in [0, 1]; None for classes that do not occur and for missing
            thresholds.
        """
        sweep = self.sweep()
        best = int((sweep["thresholds"] == sweep["best_threshold"]).nonzero()[0])
        unsupervised = self.unsupervised_threshold()
        shown = round(float(sweep["best_threshold"]), 6) if fixed_threshold is None else fixed_threshold
        counts = self.counts(shown)
        return {
            "best_miou": float(sweep["best_miou"]),
            "best_threshold": round(float(sweep["best_threshold"]), 6),
            "precision": float(sweep["precision"][best]),
            "recall": float(sweep["recall"][best]),
            "iou": known(sweep["iou"][best]),
            "images": len(self._entries),
            **_fixed_summary(fixed_threshold, counts, resamples, seed),
            "unsupervised_threshold": unsupervised,
            "miou_unsupervised": None if unsupervised is None else self._miou(unsupervised),
            "coverage": self.coverage(shown),
            "by_number_of_classes": by_number_of_classes(counts, self._numbers),
            "by_object_size": by_object_size(counts),
            **error_shares(counts),
            "pxap": known(average_precision(self._pixels)[None])[0],
            "max_box_acc_v2": self.box_accuracy(),
            "curve": {
                name: known(sweep[name].double().round(decimals=5))
                for name in ("thresholds", "miou", "precision", "recall")
            },
        }

    def _miou(self, threshold: float) -> float:
        return float(pooled_scores(self.counts(threshold)).miou)


def _fixed_summary(threshold: float | None, counts: Tensor, resamples: int, seed: int) -> dict[str, Any]:
    """The part of `MapEvaluator.summary` at the fixed threshold; None for all values without one."""
    miou, iou, bounds = None, None, None
    if threshold is not None:
        scores = pooled_scores(counts)
        miou, iou = float(scores.miou), known(scores.iou)
        bounds = interval(bootstrap_miou(counts, resamples, seed))
    return {
        "miou_at_fixed": miou,
        "iou_at_fixed": iou,
        "fixed_threshold": threshold,
        "interval_at_fixed": bounds,
    }


def full_size(maps: LocalizationMaps, size: tuple[int, int]) -> Tensor:
    """The (K, H, W) full-size maps, or the strided ones upsampled bilinearly if there are none.

    Raises:
        ValueError: the maps are of an image of another size.
    """
    own = maps.size if maps.full is None else tuple(maps.full.shape[1:])
    if own is not None and tuple(own) != size:
        raise ValueError(f"expected maps of an image of {size} pixels, got maps of {own} pixels")
    if maps.full is not None:
        return maps.full
    return resize(maps.strided, size)
