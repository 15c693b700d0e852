"""Scores of masks and of their errors, as plain values for `results.json`."""

from typing import Any

import numpy as np
from torch import Tensor

from ribseg.errors import DataError
from ribseg.functional.evaluation import class_errors
from ribseg.metrics.confusion import pooled_scores

NOTHING_SCORED = (
    "no pixel of the masks belongs to a class: all are background (0) or 255 (ignore), so nothing can be "
    "scored. run=[check_data] shows what the masks hold"
)


def mask_scores(counts: Tensor) -> dict[str, Any]:
    """Scores of masks from (N, 3, C+1) `label_counts`, as VOC computes them: pooled over all images.

    Returns:
        Fractions: "miou", "iou" per label, "precision", "recall"; "false_positive": the share of predicted
        object pixels that are background; "false_negative": the share of object pixels predicted as
        background; "foreground": the share of object pixels in the masks; "false_positive_per_class" and
        "false_negative_per_class", per label, see `error_shares`. And "images", their number.

    Raises:
        DataError: the ground truth has no object pixel.
    """
    scores = pooled_scores(counts)
    if scores.miou.isnan():
        raise DataError(NOTHING_SCORED)
    hit, predicted, true = counts.sum(0).double()
    objects, truth, total = predicted[1:].sum(), true[1:].sum(), true.sum()
    return {
        "miou": float(scores.miou),
        "iou": known(scores.iou),
        "precision": float(scores.precision),
        "recall": float(scores.recall),
        "false_positive": float((true[0] - hit[0]) / objects.clamp(min=1)),
        "false_negative": float((predicted[0] - hit[0]) / truth.clamp(min=1)),
        "foreground": float(objects / total.clamp(min=1)),
        **error_shares(counts),
        "images": len(counts),
    }


def error_shares(counts: Tensor) -> dict[str, list[float | None]]:
    """False positives and false negatives per label, as shares of its union; None where it does not occur.

    Args:
        counts: (N, 3, C+1) `label_counts` of the images.

    Returns:
        "false_positive_per_class" and "false_negative_per_class", of background and each class; with the IoU
        they add up to one.
    """
    errors = class_errors(*counts.sum(0))
    return {f"{name}_per_class": known(values) for name, values in errors._asdict().items()}


def known(values: Tensor) -> list[float | None]:
    """(N,) numbers for JSON, with None instead of NaN."""
    return [None if np.isnan(value) else value for value in values.tolist()]
