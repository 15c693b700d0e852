"""The image classifier for class activation maps (docs/method.md, section 2)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ribseg.checks import check_choice, check_number, check_switch
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD, Channels, three
from ribseg.errors import ConfigError
from ribseg.functional.cam import class_maps
from ribseg.functional.recam import class_features
from ribseg.models.backbone import Backbone, load_weights, timm_name
from ribseg.models.weights_file import described, write_described

Freeze = Literal["published", "none"]


class Classifier(nn.Module):
    """A CNN or vision transformer with global average pooling and a linear head without bias.

    Published recipe (RIB and IRN, `freeze="published"`): all BatchNorm statistics are frozen and the output
    of the trunk (after layer2) is detached, so only the last two stages and the head learn. Of a transformer
    these are its last two blocks and the final norm. Its class maps are the head over the patch tokens, as in
    ToCo (Ru et al., CVPR 2023); the class token has no part in them.

    Args:
        backbone: name of a timm CNN or transformer, "resnet50.tv_in1k" in the paper.
        num_classes: C, without background.
        pretrained: load timm's weights for the backbone.
        output_stride: 8, 16 or 32; of a transformer the side of its patches. None: that one, or 16 for a CNN.
        atrous: see `Backbone`; false for a transformer.
        weights: a file of backbone weights (.pth or .safetensors), "demo" for the built-in backbone, or
            "efficientnet_lite0" to "efficientnet_lite2" for ImageNet weights of the extra `ribseg[weights]`.
        freeze: "published", or "none" to train all weights and BatchNorm statistics, e.g. from scratch.
        backbone_kwargs: passed on to timm.
        classes: C names; None if unknown.
        mean: normalization per channel, of pixels in [0, 1]; None for timm's values of this backbone.
        std: as `mean`.

    Attributes:
        classes: see above.
        mean: see above.
        std: see above.
        settings: arguments that build an equal network, without its weights.

    Raises:
        ConfigError: an argument is out of range, or the backbone or its weights cannot be used.

    >>> import torch
    >>> classifier = Classifier("resnet10t", num_classes=3)
    >>> classifier(torch.zeros(2, 3, 64, 64)).shape, classifier.class_maps(torch.zeros(2, 3, 64, 64)).shape
    (torch.Size([2, 3]), torch.Size([2, 3, 4, 4]))
    """

    architecture: ClassVar[str] = "classifier"

    def __init__(
        self,
        backbone: str = "resnet50.tv_in1k",
        num_classes: int = 20,
        pretrained: bool = False,
        output_stride: int | None = None,
        atrous: bool = False,
        weights: str | Path | None = None,
        freeze: Freeze = "published",
        backbone_kwargs: Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_number("num_classes", num_classes, low=1, whole=True)
        check_switch("pretrained", pretrained)
        check_switch("atrous", atrous)
        check_choice("freeze", freeze, get_args(Freeze))
        if classes is not None and len(classes) != num_classes:
            raise ConfigError(f"expected {num_classes} names, one per class, got {len(classes)}")
        self.classes = None if classes is None else tuple(map(str, classes))
        self.num_classes, self.freeze = num_classes, freeze
        self.backbone = Backbone(backbone, pretrained, output_stride, atrous, backbone_kwargs)
        self.settings: dict[str, Any] = {
            "num_classes": num_classes, "backbone": self.backbone.name,
            "output_stride": self.backbone.output_stride, "atrous": atrous, "freeze": freeze,
            "backbone_kwargs": dict(backbone_kwargs or {}),
        }  # fmt: skip
        if weights is not None:
            load_weights(self.backbone, weights)
        (norm,) = self.backbone.head_norm
        self.backbone.head_norm = (None,)
        if norm is not None:  # before the head, as timm has it
            self.norm = norm
        last = self.backbone.stages[-1]
        # Made once, for hooks; in a list, as its weights are those of the backbone and of the norm.
        self._last = [last if norm is None else nn.Sequential(last, norm)]
        self.head = nn.Conv2d(self.backbone.num_features, num_classes, 1, bias=False)
        if freeze == "published":
            # The trunk is detached, so its weights get no gradient; optimizers and DDP must know it.
            self.backbone.stages[0].requires_grad_(False)
        known = self.backbone.pretrained_cfg
        self.mean: Channels = three(mean or known.get("mean") or IMAGENET_MEAN)
        self.std: Channels = three(std or known.get("std") or IMAGENET_STD)
        self.train(self.training)

    def save(self, path: str | Path) -> None:
        """Writes weights, backbone, class names and normalization; `ribseg.load` reads the file.

        Args:
            path: must end in .safetensors; the file contains no code.

        Raises:
            ConfigError: another file extension.
            RibsegError: the file cannot be written.
        """
        about = described("classifier", self, self.classes, self.mean, self.std)
        write_described(path, about, self.state_dict())

    def reorder(self, order: Sequence[int]) -> None:
        """Puts the classes in another order: row k of the heads becomes what row order[k] was."""
        with torch.no_grad():
            for head in (each for name, each in self.named_children() if name != "backbone"):
                for parameter in head.parameters():
                    parameter.copy_(parameter[list(order)])

    @property
    def weight(self) -> Tensor:
        """The head's parameter, (C, D, 1, 1): one row `w_c` per class."""
        return self.head.weight

    @property
    def trunk(self) -> nn.Module:
        """Stem to layer2, or all before the last two blocks: (N, 3, H, W) -> trunk features.

        Those of a ViT have class and register tokens in additional first rows, see `ribseg.models.tokens`.
        """
        return self.backbone.stages[0]

    @property
    def tail(self) -> list[nn.Module]:
        """The last two stages or blocks, which RIB adapts: trunk features -> ... -> (N, D, h, w)."""
        return [*self.backbone.stages[1:-1], *self._last]

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) images, normalised -> (N, D, h, w) features of the last stage.

        The trunk gets no gradients, unless they are to reach images that require them.
        """
        features = self.trunk(images)
        if self.freeze == "published" and not images.requires_grad:
            features = features.detach()
        for stage in self.tail:
            features = stage(features)
        return features

    def class_maps(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, h, w): `w_c . f(x)`, neither rectified nor normalised."""
        return class_maps(self.features(images), self.weight)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C) logits."""
        pooled = self.features(images).mean((-2, -1), keepdim=True)
        return self.head(pooled).flatten(1)

    def train(self, mode: bool = True) -> "Classifier":
        """As `nn.Module.train`, but frozen BatchNorm statistics stay frozen."""
        super().train(mode)
        if self.freeze == "published":
            for layer in self.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()
        return self

    def timm_name(self, key: str) -> str:
        """The name of a weight in timm's own network, with its head."""
        if key.startswith("head."):
            return key.replace("head", self.backbone.head_name, 1)
        if key.startswith("norm."):
            return f"head.{key}"
        return timm_name(key)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trainable parameters (backbone, head); the head has a higher learning rate."""
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        return backbone, list(self.head.parameters())


class ReCAMClassifier(Classifier):
    """A classifier with a second head, which tells single classes apart (docs/method.md, section 3.8).

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
