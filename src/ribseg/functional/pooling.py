"""Pooling of class maps to logits: GAP and GNDRP (RIB paper, section 4.2; docs/method.md, section 3.1).

The other poolings are for ablations; none of them is in the paper.
"""

import math
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


def global_max(maps: Tensor) -> Tensor:
    """Global max pooling (Oquab et al., CVPR 2015): (N, C, h, w) class maps -> (N, C) logits."""
    _check_maps(maps)
    return maps.flatten(2).amax(-1)


def log_sum_exp(maps: Tensor, sharpness: float = 5.0) -> Tensor:
    """Log-sum-exp pooling, between the mean and the maximum (Pinheiro and Collobert, CVPR 2015).

    Args:
        maps: (N, C, h, w) class maps.
        sharpness: r > 0 in `log(mean(exp(r x))) / r`; towards 0 it is the mean, towards infinity the maximum.

    Returns:
        (N, C) logits.
    """
    _check_maps(maps)
    check_number("sharpness", sharpness, above=0)
    flat = maps.flatten(2)
    return ((sharpness * flat).logsumexp(-1) - math.log(flat.shape[-1])) / sharpness


def top_k(maps: Tensor, share: float = 0.2) -> Tensor:
    """The mean of the highest values (as in WELDON, Durand et al., CVPR 2016).

    Args:
        maps: (N, C, h, w) class maps.
        share: of the locations, in (0, 1]; at least one counts.

    Returns:
        (N, C) logits.
    """
    _check_maps(maps)
    check_number("share", share, high=1, above=0)
    flat = maps.flatten(2)
    return flat.topk(max(1, round(share * flat.shape[-1]))).values.mean(-1)


def generalized_mean(maps: Tensor, power: float = 3.0) -> Tensor:
    """Generalized-mean pooling of the rectified maps, GeM (Radenovic et al., TPAMI 2019).

    Args:
        maps: (N, C, h, w) class maps; values below 1e-6 count as 1e-6 and get no gradient.
        power: p > 0 in `mean(x^p)^(1/p)`; 1 is the mean, towards infinity it is the maximum.

    Returns:
        (N, C) logits, positive.
    """
    _check_maps(maps)
    check_number("power", power, above=0)
    return maps.flatten(2).clamp(min=1e-6).pow(power).mean(-1).pow(1 / power)
