"""Losses: with the last activation for the classifier, without it for RIB."""

from torch import Tensor


def rib_loss(logits: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """The loss without a final activation: `- sum t_c min(m, y_c)` (RIB paper, equation 6).

    Summed over rows and classes, not averaged: the published learning rates belong to a sum.

    Args:
        logits: (N, C) pooled class maps `y`.
        labels: (N, C) in {0, 1}, `t`.
        margin: m; None leaves the logits unbounded, as the released program does (there the margin is a
            stop rule, see `ribseg.RIB`).

    Returns:
        Scalar.

    >>> import torch
    >>> rib_loss(torch.tensor([[5.0, 1.0]]), torch.tensor([[1.0, 0.0]]), margin=2.0)
    tensor(-2.)
    """
    bounded = logits if margin is None else logits.clamp(max=margin)
    return -(bounded * labels).sum()
