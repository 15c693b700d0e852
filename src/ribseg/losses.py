"""Losses: with the last activation for the classifier, without it for RIB."""

import torch.nn.functional as F
from torch import Tensor

from ribseg.functional.activations import RANGES, last_activation


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


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid and binary cross entropy, mean over rows and classes: what classifiers are trained with.

    Args:
        logits: (N, C).
        labels: (N, C) in {0, 1}.

    Returns:
        Scalar.
    """
    return F.multilabel_soft_margin_loss(logits, labels)


def squared_error(logits: Tensor, labels: Tensor, activation: str = "sigmoid") -> Tensor:
    """Squared error of `a(y)`: one loss for any last activation, for comparing them.

    Absent and present classes should reach 0 and 1 with the sigmoid, ReLU and no activation, else -1 and 1.

    Args:
        logits: (N, C), y.
        labels: (N, C) in {0, 1}.
        activation: name of a, see `ribseg.functional.activations`.

    Returns:
        Scalar, the mean over rows and classes.
    """
    low, high = RANGES.get(activation, (-1.0, 1.0))
    return F.mse_loss(last_activation(activation)(logits), low + (high - low) * labels)


def signed_rib_loss(logits: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """`rib_loss` with absent classes pushed down as present ones are pushed up; for training from scratch.

    Equation 6 says nothing of absent classes: alone it is minimised by making every logit large, without
    telling classes apart. This is what it would have to be to train a classifier, still without activation.

    Args:
        logits: (N, C).
        labels: (N, C) in {0, 1}.
        margin: m bounds `y_c` of present classes from above and of absent ones from below; None does not.

    Returns:
        Scalar, the sum over rows and classes.
    """
    return rib_loss(logits, labels, margin) + rib_loss(-logits, 1 - labels, margin)
