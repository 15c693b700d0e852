"""ReCAM: maps of both heads of a classifier together (docs/method.md, section 3.8).

Chen, Wang, Wu, Hua, Zhang, Sun: *Class Re-Activation Maps for Weakly-Supervised Semantic Segmentation*, CVPR
2022, section 4.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ribseg.errors import ConfigError
from ribseg.methods.cam import cam, head_of
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
        self.classifier, self.head = classifier, head_of(classifier)
        second = getattr(getattr(classifier, "second", None), "weight", None)
        if second is None or second.shape != self.head.shape:
            raise ConfigError(
                f"expected a classifier with a second head, got {type(classifier).__name__}; train one with "
                "classifier=recam"
            )
        self.second: Tensor = second

    def __call__(self, *, views: Sequence[Tensor], labels: Tensor) -> Adaptation:
        """The maps of one image; see `ribseg.methods.base.Method`.

        Raises:
            ValueError: wrong shapes of views or labels.
        """
        return cam(self.classifier, views, labels, self.head * self.second)
