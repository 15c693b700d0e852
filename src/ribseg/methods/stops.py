"""Stop rules of RIB, which end the adaptation of an image early (docs/method.md, section 3.2)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ribseg.functional.cam import active_area
from ribseg.types import AdaptationStep, Stop


@torch.no_grad()
def measure(
    raw: Tensor, maps: Sequence[Tensor], logits: Tensor, labels: Tensor, loss: Tensor, area_threshold: float
) -> AdaptationStep:
    """The measurements of one step, copied from the device together: a step's only synchronization.

    Args:
        raw: (2, K, h, w) class maps of the present classes, the first view and its mirror image.
        maps: one (K, h_s, w_s) tensor per view, non-negative.
        logits: (N, C) of the image's own views.
        labels: (C,) in {0, 1}.
        loss: scalar loss of the previous step.
        area_threshold: in [0, 1].
    """
    finite = torch.stack([torch.isfinite(view).all() for view in maps]).all()
    area = active_area(maps[0], area_threshold)
    numbers = [loss, area, (logits * labels).sum(), finite, raw.mean()]
    return AdaptationStep(*torch.stack([number.to(logits.dtype) for number in numbers]).tolist())


def area_exceeded(area: float, limit: float | None) -> bool:
    """Whether the area of the present classes' maps exceeds the limit; None disables the rule.

    >>> area_exceeded(0.8, 0.7), area_exceeded(0.8, None), area_exceeded(float("nan"), 0.7)
    (True, False, False)
    """
    return limit is not None and area > limit


def margin_reached(target_logits: float, margin: float | None) -> bool:
    """Whether the magnitude of the target logits exceeds the margin m; None disables the rule.

    >>> margin_reached(-700.0, 600.0), margin_reached(500.0, 600.0), margin_reached(700.0, None)
    (True, False, False)
    """
    return margin is not None and abs(target_logits) > margin


def not_finite(*numbers: float) -> bool:
    """Whether any number is NaN or infinite.

    >>> not_finite(1.0, float("nan")), not_finite(1.0)
    (True, False)
    """
    return not all(map(math.isfinite, numbers))


def steps_taken(k: int, stop: Stop, measured: AdaptationStep) -> int:
    """The number of SGD steps of an adaptation that a rule ended at step k.

    The margin stop includes step k; a non-finite loss is from the previous step, which does not count.
    """
    return k + (stop == "margin") - not_finite(measured.loss)
