"""Gradient maps of one image before and after RIB."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ribseg.analysis.gradients import gradient_stack
from ribseg.functional.activations import Activation
from ribseg.methods.rib import RIB, References
from ribseg.types import Stop


class BeforeAfter(NamedTuple):
    """What `gradients_before_and_after` finds.

    Attributes:
        before: L + 1 gradients, (1, C, H, W): the layers', and the class prediction's.
        after: the same under the adapted weights.
        steps: SGD steps taken.
        stopped: which rule ended the adaptation, if any; after "not_finite" nothing after can be trusted.
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
    """Gradients of the image, under the classifier as it is and as RIB leaves it for this image.

    Args:
        rib: carries the classifier, which is left as it was.
        views: see `ribseg.RIB`; gradients are of the first one's image, not of its mirror image.
        labels: (C,) in {0, 1}; the classes that are adapted and looked at.
        layers: modules of the classifier, see `gradient_stack`.
        references: see `ribseg.RIB`.
        activation: the last activation in the class prediction; None leaves it out.

    Returns:
        Gradients before and after.
    """
    device = rib.weight.device
    image, rows = views[0][:1].to(device), labels[None].to(device)
    before = gradient_stack(rib.classifier, image, rows, layers, activation)
    with rib.adapting(views, labels, references) as result:
        after = gradient_stack(rib.classifier, image, rows, layers, activation)
    return BeforeAfter(before, after, result.steps, result.stopped)
