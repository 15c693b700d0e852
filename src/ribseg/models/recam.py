"""The classifier with a second head for ReCAM (docs/method.md, section 3.8)."""

from typing import Any, ClassVar

from torch import Tensor, nn

from ribseg.functional.recam import class_features
from ribseg.models.classifier import Classifier


class ReCAMClassifier(Classifier):
    """A classifier with a second head, which tells single classes apart by softmax.

    Chen, Wang, Wu, Hua, Zhang, Sun: *Class Re-Activation Maps for Weakly-Supervised Semantic Segmentation*,
    CVPR 2022, section 4. Its logits and class maps are those of the first head.

    Args:
        args: of `Classifier`.
        kwargs: of `Classifier`.

    Attributes:
        second: the second head, a 1x1 convolution without bias.

    >>> import torch
    >>> classifier = ReCAMClassifier("resnet10t", num_classes=3)
    >>> classifier.single_class_logits(classifier.features(torch.zeros(2, 3, 64, 64))).shape
    torch.Size([2, 3, 3])
    """

    architecture: ClassVar[str] = "recam"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.second = nn.Conv2d(self.backbone.num_features, self.num_classes, 1, bias=False)

    def single_class_logits(self, features: Tensor) -> Tensor:
        """(N, D, h, w) features -> (N, C, C): of the second head, for the features under each class's CAM."""
        rows = self.second.weight.flatten(1)
        return class_features(features, self.weight).to(rows.dtype) @ rows.T
