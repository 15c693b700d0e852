"""Losses of RIB (without a last activation), classifiers and segmenters."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.checks import SettingError, check_choice, check_number, check_switch
from ribseg.errors import reason
from ribseg.functional.activations import RANGES, last_activation
from ribseg.functional.guards import check_same_shape

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (N, C) and labels (N, C) in {0, 1} -> scalar
Place = Literal["logits", "target"]

TINY = 1e-12  # lower bound of divisors


def rib_loss(logits: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """The loss without a final activation: `- sum t_c min(m, y_c)` (RIB paper, equation 6).

    Summed over rows and classes, not averaged: the published learning rates assume a sum.

    Args:
        logits: (N, C) pooled class maps `y`.
        labels: (N, C) in {0, 1}, `t`.
        margin: m; None leaves the logits unbounded, as in the released program, where the margin is a stop
            rule (see `ribseg.RIB`).

    Returns:
        Scalar.

    Raises:
        ConfigError: the margin is not a finite number.

    >>> import torch
    >>> rib_loss(torch.tensor([[5.0, 1.0]]), torch.tensor([[1.0, 0.0]]), margin=2.0)
    tensor(-2.)
    """
    check_number("margin", margin, words=(None,))
    check_same_shape(logits, labels, "logits and labels")
    bounded = logits if margin is None else logits.clamp(max=margin)
    return -(bounded * labels).sum()


def check_loss(loss: Loss, logits: Tensor) -> None:
    """Tests a custom loss on a few logits.

    Args:
        loss: see `Loss`.
        logits: (N, C) float, with the device and dtype of the training.

    Raises:
        SettingError: it fails, or does not return a finite scalar with a finite gradient.

    >>> check_loss(lambda logits, labels: logits - labels, torch.zeros(2, 3))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ribseg.checks.SettingError: loss: expected a finite scalar with gradient for (2, 3) logits, got shape ...
    """
    expected = f"loss: expected a finite scalar with gradient for {tuple(logits.shape)} logits"
    with torch.inference_mode(False), torch.enable_grad():
        point = logits.detach().clone().requires_grad_()
        labels = torch.ones_like(logits)
        labels[:, 1::2] = 0
        try:
            value: Any = loss(point, labels)
        except Exception as error:
            raise SettingError(f"{expected}, but {type(error).__name__}: {reason(error)}") from error
        problem = _problem(value, point)
    if problem:
        raise SettingError(f"{expected}, got {problem}")


def _problem(value: Any, logits: Tensor) -> str:
    """What is wrong with a loss; empty for a valid one."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.ndim != 0:
        return f"shape {tuple(value.shape)}"
    if not value.requires_grad:
        return "one without a gradient"
    (gradient,) = torch.autograd.grad(value, logits, allow_unused=True)
    if gradient is None:
        return "one that does not depend on the logits"
    finite = torch.isfinite(value) & torch.isfinite(gradient).all()
    return "" if bool(finite) else f"the value {value.item()} or a gradient that is not finite"


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy with sigmoid, mean over rows and classes: the classifier's training loss.

    Args:
        logits: (N, C).
        labels: (N, C) in {0, 1}.

    Returns:
        Scalar.
    """
    check_same_shape(logits, labels, "logits and labels")
    return F.multilabel_soft_margin_loss(logits, labels)


def squared_error(logits: Tensor, labels: Tensor, activation: str = "sigmoid") -> Tensor:
    """Squared error of `a(y)`, for comparing last activations under one loss.

    The targets of absent and present classes are 0 and 1 for sigmoid, ReLU and none, else -1 and 1.

    Args:
        logits: (N, C), y.
        labels: (N, C) in {0, 1}.
        activation: name of a, see `ribseg.functional.activations`.

    Returns:
        Scalar, the mean over rows and classes.
    """
    check_same_shape(logits, labels, "logits and labels")
    low, high = RANGES.get(activation, (-1.0, 1.0))
    return F.mse_loss(last_activation(activation)(logits), low + (high - low) * labels)


def signed_rib_loss(logits: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """`rib_loss` that also lowers the logits of absent classes, for training from scratch.

    Equation 6 ignores absent classes: any network with large logits minimizes it. This is the corresponding
    loss, still without activation, that can train a classifier.

    Args:
        logits: (N, C).
        labels: (N, C) in {0, 1}.
        margin: m, upper bound of `y_c` of present classes, and -m the lower bound of absent ones; None: no
            bounds.

    Returns:
        Scalar, the sum over rows and classes.
    """
    return rib_loss(logits, labels, margin) + rib_loss(-logits, 1 - labels, margin)


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    balanced: bool = False,
    at: Place = "target",
    ignore_index: int = 255,
) -> Tensor:
    """Cross entropy of a segmenter over the labeled pixels.

    Args:
        logits: (N, C+1, h, w), label 0 is background.
        target: (N, H, W) integer labels.
        class_weights: (C+1,) weights of the labels; None: equal weights.
        balanced: per image, the mean over background plus the mean over foreground, independent of their
            numbers of pixels, as for seeds in DSRG (Huang et al., CVPR 2018).
        at: "target" upsamples the logits to the labels; "logits" downsamples the labels to the logits, as
            the published DeepLab-v2 does (cheaper, but thin objects are lost).
        ignore_index: label of ignored pixels.

    Returns:
        Scalar; zero where no pixel has a label.

    Raises:
        ConfigError: an argument is out of range.

    >>> import torch
    >>> logits = torch.zeros(1, 2, 1, 4)
    >>> target = torch.tensor([[[0, 0, 0, 1]]])
    >>> segmentation_loss(logits, target), segmentation_loss(logits, target, balanced=True)
    (tensor(0.6931), tensor(1.3863))
    """
    check_choice("at", at, get_args(Place))
    check_switch("balanced", balanced)
    logits = logits.float()  # for the logarithms under mixed precision
    if at == "logits":
        small = F.interpolate(target[:, None].float(), tuple(logits.shape[-2:]), mode="nearest-exact")
        target = small[:, 0]
    else:
        logits = F.interpolate(logits, tuple(target.shape[-2:]), mode="bilinear", align_corners=False)
    target = target.long()
    valid = target != ignore_index
    labels = torch.where(valid, target, 0)
    losses = F.cross_entropy(logits, labels, reduction="none")
    weights = valid.to(losses.dtype)
    if class_weights is not None:
        weights = weights * class_weights.to(losses)[labels]
    if not balanced:
        return (losses * weights).sum() / weights.sum().clamp(min=TINY)
    parts = [weights * (labels == 0), weights * (labels > 0)]
    means = [(losses * part).sum((1, 2)) / part.sum((1, 2)).clamp(min=TINY) for part in parts]
    return (means[0] + means[1]).mean()
