"""Gradient maps of one image before and after RIB."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ribseg.analysis.gradients import gradient_stack
from ribseg.functional.activations import Activation
from ribseg.methods.rib import RIB, References
from ribseg.types import Stop


class BeforeAfter(NamedTuple):
    """Result of `gradients_before_and_after`.

    Attributes:
        before: L + 1 gradients (1, C, H, W): of the layers and of the class prediction.
        after: the same under the adapted weights; invalid if `stopped` is "not_finite".
        steps: SGD steps taken.
        stopped: the stop rule that ended the adaptation, if any.
    """

    before: list[Tensor]
    after: list[Tensor]
    steps: int
    stopped: Stop | None


def gradients_before_and_after(
    rib: RIB,
    views: Sequence[Tensor],
    labels: Tensor,
    layers: Sequence[nn.Module],
    references: References = (),
    activation: Activation | None = None,
) -> BeforeAfter:
    """Input gradients of an image under the original and the adapted classifier.

    Args:
        rib: with the classifier, whose weights are restored.
        views: see `ribseg.RIB`; gradients are of the first view, without its mirror image.
        labels: (C,) in {0, 1}; the classes to adapt to and to analyze.
        layers: modules of the classifier, see `gradient_stack`.
        references: see `ribseg.RIB`.
        activation: the last activation of the class prediction; None for the logits.

    Returns:
        Gradients before and after.
    """
    device = rib.weight.device
    image, rows = views[0][:1].to(device), labels[None].to(device)
    before = gradient_stack(rib.classifier, image, rows, layers, activation)
    with rib.adapting(views, labels, references) as result:
        after = gradient_stack(rib.classifier, image, rows, layers, activation)
    return BeforeAfter(before, after, result.steps, result.stopped)
