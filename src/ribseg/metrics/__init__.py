"""Metrics of localization maps and masks, as in VOC from one confusion matrix over the whole set.

The classes are torchmetrics' `Metric`s with states of integers: processes add them up without rounding.
"""

from ribseg.metrics.bootstrap import bootstrap_miou, interval
from ribseg.metrics.boundary import BoundaryF
from ribseg.metrics.boxes import MaxBoxAccV2, boxes_at_thresholds, true_boxes
from ribseg.metrics.confusion import (
    MaskConfusion,
    check_target,
    confusion_matrix,
    counts_of,
    label_counts,
    pooled_scores,
)
from ribseg.metrics.groups import GroupedScores, by_number_of_classes, by_object_size
from ribseg.metrics.pixels import PxAP
from ribseg.metrics.sweep import ThresholdSweep, sweep_of

__all__ = [
    "BoundaryF",
    "GroupedScores",
    "MaskConfusion",
    "MaxBoxAccV2",
    "PxAP",
    "ThresholdSweep",
    "bootstrap_miou",
    "boxes_at_thresholds",
    "by_number_of_classes",
    "by_object_size",
    "check_target",
    "confusion_matrix",
    "counts_of",
    "interval",
    "label_counts",
    "pooled_scores",
    "sweep_of",
    "true_boxes",
]
