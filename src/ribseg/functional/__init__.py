"""Pure functions of tensors: pooling, class activation maps, evaluation."""

from ribseg.functional.cam import (
    active_area,
    argmax_labels,
    class_maps,
    merge_mirrored,
    normalize,
    resize_and_sum,
)
from ribseg.functional.evaluation import Scores, scores, threshold_histogram
from ribseg.functional.pooling import gap, gndrp

__all__ = [
    "Scores",
    "active_area",
    "argmax_labels",
    "class_maps",
    "gap",
    "gndrp",
    "merge_mirrored",
    "normalize",
    "resize_and_sum",
    "scores",
    "threshold_histogram",
]
