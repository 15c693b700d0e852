"""Pure functions of tensors: pooling, class activation maps, refinement, evaluation."""

from ribseg.functional.attention import attention_affinity, box_mask, refine_by_attention
from ribseg.functional.boundary import boundary_counts, boundary_f
from ribseg.functional.boxes import box_iou
from ribseg.functional.cam import (
    active_area,
    argmax_labels,
    class_maps,
    merge_mirrored,
    normalize,
    resize_and_sum,
)
from ribseg.functional.clustering import cosine_kmeans
from ribseg.functional.dense_crf import dense_crf
from ribseg.functional.evaluation import ClassErrors, Scores, class_errors, scores, threshold_histogram
from ribseg.functional.irn import AffinityLosses, affinity_losses
from ribseg.functional.pixel_adaptive import pixel_adaptive
from ribseg.functional.pixels import average_precision, pixel_histogram
from ribseg.functional.pooling import gap, generalized_mean, global_max, gndrp, log_sum_exp, top_k
from ribseg.functional.psa import feature_affinity_losses
from ribseg.functional.random_walk import feature_random_walk, random_walk
from ribseg.functional.recam import class_features, single_class_loss
from ribseg.functional.refined import refined_labels
from ribseg.functional.rib import rib
from ribseg.functional.saliency import labels_with_saliency, labels_with_scene_saliency
from ribseg.functional.segments import vote_segments
from ribseg.functional.threshold import otsu, score_histogram

__all__ = [
    "AffinityLosses",
    "ClassErrors",
    "Scores",
    "active_area",
    "affinity_losses",
    "argmax_labels",
    "attention_affinity",
    "average_precision",
    "boundary_counts",
    "boundary_f",
    "box_iou",
    "box_mask",
    "class_errors",
    "class_features",
    "class_maps",
    "cosine_kmeans",
    "dense_crf",
    "feature_affinity_losses",
    "feature_random_walk",
    "gap",
    "generalized_mean",
    "global_max",
    "gndrp",
    "labels_with_saliency",
    "labels_with_scene_saliency",
    "log_sum_exp",
    "merge_mirrored",
    "normalize",
    "otsu",
    "pixel_adaptive",
    "pixel_histogram",
    "random_walk",
    "refine_by_attention",
    "refined_labels",
    "resize_and_sum",
    "rib",
    "score_histogram",
    "scores",
    "single_class_loss",
    "threshold_histogram",
    "top_k",
    "vote_segments",
]
