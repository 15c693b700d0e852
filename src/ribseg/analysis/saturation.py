"""Saturation of the last activation, where gradients vanish (RIB paper, section 3)."""

import torch
from torch import Tensor

from ribseg.functional.activations import Activation, slope


def saturation(
    logits: Tensor,
    activation: Activation = torch.sigmoid,
    epsilon: float = 0.01,
    labels: Tensor | None = None,
) -> float:
    """The fraction of logits at which the slope of the activation is nearly zero.

    Args:
        logits: (N, C).
        activation: the last activation, elementwise.
        epsilon: slopes `|a'(y)|` below this, and non-finite ones, count as zero; the sigmoid's largest slope
            is 0.25.
        labels: (N, C) in {0, 1}: use labeled classes only; None: all classes.

    Returns:
        In [0, 1]; NaN without logits.

    >>> saturation(torch.tensor([[0.0], [9.0]]))
    0.5
    """
    flat = ~(slope(activation, logits).abs() >= epsilon)
    chosen = flat if labels is None else flat[labels.to(flat.device) > 0]
    return float(chosen.float().mean())
