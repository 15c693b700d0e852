"""ReCAM: maps of both heads of a classifier together (docs/method.md, section 3.8).

Chen, Wang, Wu, Hua, Zhang, Sun: *Class Re-Activation Maps for Weakly-Supervised Semantic Segmentation*, CVPR
2022, section 4.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ribseg.errors import ConfigError
from ribseg.functional.cam import class_maps, merge_mirrored
from ribseg.functional.state import evaluating
from ribseg.methods.cam import checked, features_of, head_of, without_classes
from ribseg.types import Adaptation, ViewMaps


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
        present, rows, maps = checked(views, labels, len(self.head)), self.head * self.second, []
        if not len(present):
            return without_classes(views)
        with evaluating(self.classifier):
            for view in views:
                class_map = class_maps(self.features(view.to(rows.device)), rows)
                maps.append(merge_mirrored(class_map[:, present.to(rows.device)]).float())
        return Adaptation(ViewMaps(maps, present), present, 0, None)
