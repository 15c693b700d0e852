"""Saturation of the last activation: where it is flat, nothing passes back (RIB paper, section 3)."""

import torch
from torch import Tensor

from ribseg.functional.activations import Activation, slope


def saturation(
    logits: Tensor,
    activation: Activation = torch.sigmoid,
    epsilon: float = 0.01,
    labels: Tensor | None = None,
) -> float:
    """The share of samples at which the activation has a slope of nearly zero.

    Args:
        logits: (N, C).
        activation: the last one, elementwise.
        epsilon: `|a'(y)|` below it counts as none; the sigmoid's largest slope is 0.25.
        labels: (N, C) in {0, 1}: look at the labelled classes only; None looks at all.

    Returns:
        In [0, 1]; NaN without anything to look at. A slope that is not finite counts as none.

    >>> saturation(torch.tensor([[0.0], [9.0]]))
    0.5
    """
    flat = ~(slope(activation, logits).abs() >= epsilon)
    chosen = flat if labels is None else flat[labels.to(flat.device) > 0]
    return float(chosen.float().mean())
