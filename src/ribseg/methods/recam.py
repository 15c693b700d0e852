"""ReCAM: maps of both heads of a classifier together (docs/method.md, section 3.8).

Chen, Wang, Wu, Hua, Zhang, Sun: *Class Re-Activation Maps for Weakly-Supervised Semantic Segmentation*, CVPR
2022, section 4.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ribseg.errors import ConfigError
from ribseg.methods.cam import features_of, head_of, maps_of_views, view_cam
from ribseg.types import Adaptation


class ReCAM:
    """Class activation maps with the product of the rows of both heads, as the released program has them.

    Args:
        classifier: a `ribseg.models.ReCAMClassifier`, or any other with `features(x)`, `weight` and a module
            `second`, whose `weight` has the same shape.

    Raises:
        ConfigError: it has no second head.
    """

    def __init__(self, classifier: nn.Module) -> None:
        self.classifier, self.head, self.features = classifier, head_of(classifier), features_of(classifier)
        second = getattr(getattr(classifier, "second", None), "weight", None)
        if second is None or second.shape != self.head.shape:
            raise ConfigError(
                f"expected a classifier with a second head, got {type(classifier).__name__}; train one with "
                "classifier=recam"
            )
        self.second: Tensor = second

    @torch.no_grad()
    def __call__(self, *, views: Sequence[Tensor], labels: Tensor) -> Adaptation:
        """The maps of one image; see `ribseg.methods.base.Method`.

        Raises:
            ValueError: wrong shapes of views or labels.
        """
        rows = self.head * self.second
        return maps_of_views(self.classifier, views, labels, rows, partial(view_cam, self.features, rows))
