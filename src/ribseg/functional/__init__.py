"""Pure functions of tensors: pooling, class activation maps, refinement, evaluation."""

from ribseg.functional.affinity import AffinityLosses, affinity_losses
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
from ribseg.functional.random_walk import random_walk

__all__ = [
    "AffinityLosses",
    "Scores",
    "active_area",
    "affinity_losses",
    "argmax_labels",
    "class_maps",
    "gap",
    "gndrp",
    "merge_mirrored",
    "normalize",
    "random_walk",
    "resize_and_sum",
    "scores",
    "threshold_histogram",
]
