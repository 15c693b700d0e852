"""Analysis of the information bottleneck in any network (RIB paper, section 3).

Gradient maps per layer, high gradient ratios of regions, saturation of the last activation, and a binned
estimate of mutual information. `experiment=toy_bottleneck` combines them.
"""

from ribseg.analysis.adaptation import BeforeAfter, gradients_before_and_after
from ribseg.analysis.gradients import class_scores, gradient_stack, input_gradients
from ribseg.analysis.information import binned_information
from ribseg.analysis.regions import gradient_map, high_gradient_ratio, normalized_gradient
from ribseg.analysis.saturation import saturation

__all__ = [
    "BeforeAfter",
    "binned_information",
    "class_scores",
    "gradient_map",
    "gradient_stack",
    "gradients_before_and_after",
    "high_gradient_ratio",
    "input_gradients",
    "normalized_gradient",
    "saturation",
]
