"""Where RIB's paper and the released program differ (docs/method.md, section 3.2)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ribseg.functional.cam import active_area
from ribseg.functional.losses import rib_loss
from ribseg.methods.pooling import GNDRP
from ribseg.types import AdaptationStep, Preset, Stop


class Official:
    """The released program: the rules of the preset "official".

    Args:
        margin: m, a stop rule; None disables it.
        area_limit: see `ribseg.RIB`; None disables it.
    """

    pooling = GNDRP(0.4, "all", "official")

    def __init__(self, margin: float | None, area_limit: float | None) -> None:
        self.margin, self.area_limit = margin, area_limit

    def updates(self, steps: int) -> int:
        """The number of updates that are computed: nothing reads what the last of K would change."""
        return max(steps - 1, 0)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Equation 6 without its bound: (N, C) logits and labels -> scalar."""
        return rib_loss(logits, labels)

    def stop(self, k: int, step: AdaptationStep) -> Stop | None:
        """The first rule that ends the adaptation with step k, in the order of the released program."""
        if not math.isfinite(step.loss):  # of the update that led to theta_k
            return "not_finite"
        if k > 0 and self.area_limit is not None and step.area > self.area_limit:
            return "area"
        if not step.maps_finite or not math.isfinite(step.target_logits):
            return "not_finite"
        return "margin" if self.margin is not None and abs(step.target_logits) > self.margin else None

    def add(self, sums: Sequence[Tensor], cams: Sequence[Tensor], stop: Stop | None) -> list[Tensor]:
        """The (K, h, w) sums of each view with the maps of a step; if area ends it, only the first view's."""
        if stop == "area":
            return [sums[0] + cams[0], *sums[1:]]
        if stop == "not_finite":
            return list(sums)
        return [total + cam for total, cam in zip(sums, cams, strict=True)]

    def taken(self, k: int, stop: Stop | None, step: AdaptationStep) -> int:
        """The number of SGD steps of an adaptation that has come to step k.

        Step k counts unless area or broken numbers end it before; the one before it not if it broke the loss.
        """
        return k + (stop in (None, "margin")) - (not math.isfinite(step.loss))


class Fixed(Official):
    """The released program with every view summed equally often."""

    def add(self, sums: Sequence[Tensor], cams: Sequence[Tensor], stop: Stop | None) -> list[Tensor]:
        """The (K, h, w) sums of each view with the maps of a step; if area ends it, with none."""
        return list(sums) if stop == "area" else super().add(sums, cams, stop)


class Paper(Fixed):
    """The paper's equations: the margin bounds the logits, and the maps under theta_K are summed, too."""

    pooling = GNDRP(0.4, "kept", "paper")

    def __init__(self, margin: float | None, area_limit: float | None) -> None:
        super().__init__(None, area_limit)
        self.bound = margin

    def updates(self, steps: int) -> int:
        """All K of them."""
        return steps

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Equation 6: (N, C) logits and labels -> scalar."""
        return rib_loss(logits, labels, self.bound)

    def taken(self, k: int, stop: Stop | None, step: AdaptationStep) -> int:
        """The number of SGD steps before the maps of step k; one that broke the loss does not count."""
        return k - (not math.isfinite(step.loss))


PRESETS: dict[Preset, type[Official]] = {"official": Official, "paper": Paper, "fixed": Fixed}


@torch.no_grad()
def measure(
    raw: Tensor, cams: Sequence[Tensor], logits: Tensor, labels: Tensor, loss: Tensor, area_threshold: float
) -> AdaptationStep:
    """The measurements of one step, copied from the device together: a step's only synchronization.

    Args:
        raw: (2, K, h, w) class maps of the present classes, the first view and its mirror image.
        cams: one (K, h_s, w_s) tensor per view, non-negative.
        logits: (N, C) of the image's own views.
        labels: (C,) in {0, 1}.
        loss: scalar loss of the previous step.
        area_threshold: in [0, 1].
    """
    finite = torch.stack([torch.isfinite(cam).all() for cam in cams]).all()
    area = active_area(cams[0], area_threshold)
    numbers = [loss, area, (logits * labels).sum(), finite, raw.mean()]
    return AdaptationStep(*torch.stack([number.to(logits.dtype) for number in numbers]).tolist())
