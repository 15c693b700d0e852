"""Pooling of class maps to logits: GAP and GNDRP (RIB paper, section 4.2; docs/method.md, section 3.1)."""

from typing import Literal, get_args

import torch
from torch import Tensor

from ribseg.checks import check_choice, check_number

Divisor = Literal["all", "kept"]
Rule = Literal["official", "paper"]


def gap(maps: Tensor) -> Tensor:
    """Global average pooling.

    Args:
        maps: (N, C, h, w) class maps `w_c . f(x)`, not rectified.

    Returns:
        (N, C) logits, the mean over all locations.
    """
    _check_maps(maps)
    return maps.flatten(2).mean(-1)


def gndrp(
    maps: Tensor,
    labels: Tensor,
    threshold: float = 0.4,
    divisor: Divisor = "all",
    rule: Rule = "official",
    num_masked_classes: int | None = None,
) -> Tensor:
    """Global non-discriminative region pooling: averages only locations with a low class activation.

    The mask is computed per row and target class, without gradient; other classes are pooled over all
    locations.

    Args:
        maps: (N, C, h, w) class maps `w_c . f(x)`, not rectified.
        labels: (N, C) in {0, 1}, 1 for the target classes of each row.
        threshold: tau, in [0, 1].
        divisor: "all" divides by the number of all locations (released program), "kept" by the number of
            kept locations (equation 7); a class without a kept location pools to zero.
        rule: which locations are kept. "official": `map / max(map) < tau`, as in the released program (none
            if the maximum is negative). "paper": `relu(map) / max(relu(map)) <= tau`.
        num_masked_classes: mask only this many classes, starting from the first; the others get plain GAP.
            20 reproduces a defect of the released program on COCO. None masks every class.

    Returns:
        (N, C) logits.

    Raises:
        ValueError: shapes do not match, or an argument is out of range.

    >>> maps = torch.tensor([[[[4.0, 1.0], [0.0, 2.0]]]])
    >>> gndrp(maps, torch.ones(1, 1), threshold=0.4), gndrp(maps, torch.ones(1, 1), 0.4, divisor="kept")
    (tensor([[0.2500]]), tensor([[0.5000]]))
    """
    _check_maps(maps)
    _check_labels(maps, labels)
    check_gndrp_arguments(threshold, divisor, rule, num_masked_classes)
    masked = labels > 0
    if num_masked_classes is not None:
        masked = masked & (torch.arange(maps.shape[1], device=maps.device) < num_masked_classes)
    keep = _low_activation(maps.detach(), threshold, rule) | ~masked[:, :, None, None]
    total = (maps * keep).sum((-2, -1))
    if divisor == "all":
        return total / (maps.shape[-2] * maps.shape[-1])
    return total / keep.sum((-2, -1)).clamp(min=1)


def _low_activation(maps: Tensor, threshold: float, rule: Rule) -> Tensor:
    if rule == "official":
        # A maximum of zero gives 0/0 = nan, which compares as "not kept", as in the released program.
        return maps / maps.amax((-2, -1), keepdim=True) < threshold
    rectified = maps.relu()
    peak = rectified.amax((-2, -1), keepdim=True)
    # No division by the peak: a class that is active nowhere has no discriminative region, so all is kept.
    return rectified <= threshold * peak


def _check_maps(maps: Tensor) -> None:
    if maps.ndim != 4 or not maps.is_floating_point():
        raise ValueError(
            f"expected float maps of shape (N, C, h, w), got {maps.dtype} of shape {tuple(maps.shape)}; "
            "pass class maps before pooling, e.g. classifier.class_maps(images)"
        )


def _check_labels(maps: Tensor, labels: Tensor) -> None:
    if labels.shape != maps.shape[:2]:
        raise ValueError(
            f"expected labels of shape (N, C) = {tuple(maps.shape[:2])} to match the maps, "
            f"got {tuple(labels.shape)}; pass one row of image-level labels per row of maps"
        )


def check_gndrp_arguments(
    threshold: float, divisor: str, rule: str, num_masked_classes: int | None = None
) -> None:
    """Raises a ConfigError unless the settings of `gndrp` are in range."""
    check_number("threshold", threshold, 0, 1)
    check_choice("divisor", divisor, get_args(Divisor))
    check_choice("rule", rule, get_args(Rule))
    check_number("num_masked_classes", num_masked_classes, low=0, whole=True, words=(None,))
