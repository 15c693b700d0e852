"""DeepLab-v2, the segmenter of the published recipes (Chen et al., TPAMI 2018; docs/method.md, section 6)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ribseg.checks import check_choice, check_number, check_numbers, check_switch
from ribseg.models.backbone import Backbone, load_weights

Norm = Literal["frozen", "train"]
HEAD_STD = 0.01  # of the head's initial weights, as published


class ParameterGroups(NamedTuple):
    """The trainable parameters by learning rate: published are 1, 10 and 20 times the base rate."""

    backbone: list[nn.Parameter]
    head_weights: list[nn.Parameter]
    head_biases: list[nn.Parameter]


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling of DeepLab-v2: parallel 3x3 convolutions to the classes, summed.

    Args:
        in_channels: D.
        num_classes: C + 1, with background.
        dilations: of the parallel convolutions.
    """

    def __init__(self, in_channels: int, num_classes: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for dilation in dilations:
            branch = nn.Conv2d(in_channels, num_classes, 3, padding=dilation, dilation=dilation)
            nn.init.normal_(branch.weight, std=HEAD_STD)
            nn.init.zeros_(cast(Tensor, branch.bias))
            self.branches.append(branch)

    def forward(self, features: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, C+1, h, w)."""
        return torch.stack([branch(features) for branch in self.branches]).sum(0)


class SegmenterNetwork(nn.Module, ABC):
    """Base class of segmenters whose BatchNorm layers can be frozen; see `DeepLabV2` for the arguments."""

    settings: dict[str, Any]

    def __init__(self, num_classes: int, norm: Norm) -> None:
        super().__init__()
        check_number("num_classes", num_classes, low=2, whole=True)  # with background
        check_choice("norm", norm, get_args(Norm))
        self.num_classes, self.norm = num_classes, norm

    @abstractmethod
    def parts(self) -> tuple[nn.Module, ...]:
        """The pretrained part, whose BatchNorm layers are frozen with norm="frozen", and the new ones."""

    def train(self, mode: bool = True) -> "SegmenterNetwork":
        """As `nn.Module.train`, but frozen BatchNorm layers stay in evaluation mode, and do not learn."""
        super().train(mode)
        if self.norm == "frozen":
            for layer in self.parts()[0].modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval().requires_grad_(False)
        return self

    def parameter_groups(self) -> ParameterGroups:
        """The trainable parameters: pretrained ones; weights and biases of the new parts."""
        backbone, *heads = self.parts()
        named = [(name, p) for head in heads for name, p in head.named_parameters() if p.requires_grad]
        return ParameterGroups(
            [parameter for parameter in backbone.parameters() if parameter.requires_grad],
            [parameter for name, parameter in named if not name.endswith("bias")],
            [parameter for name, parameter in named if name.endswith("bias")],
        )


class DeepLabV2(SegmenterNetwork):
    """An atrous CNN with an ASPP head.

    The last stages are dilated, not strided. As in timm, their first 3x3 convolution keeps the dilation of
    the previous stage. In the original program, with strides in the 1x1 convolutions, all 3x3 convolutions of
    a stage are dilated equally; the receptive fields are the same.

    Args:
        num_classes: C + 1, with background.
        backbone: name of a timm CNN; published: ResNet-101.
        pretrained: load timm's ImageNet weights for the backbone.
        weights: a file of backbone weights (.pth or .safetensors), or "demo" for the built-in backbone.
        output_stride: 8 or 16.
        dilations: of the ASPP branches.
        norm: "frozen": BatchNorm keeps its loaded statistics and weights (published; suits small batches);
            "train": it learns (with several GPUs under `Trainer(sync_batchnorm=True)`).
        backbone_kwargs: passed on to timm.

    Attributes:
        settings: arguments that build an equal network, without its weights.

    Raises:
        ConfigError: an argument is out of range, or the backbone or its weights cannot be used.

    >>> model = DeepLabV2(num_classes=3, backbone="resnet10t")
    >>> model(torch.zeros(1, 3, 65, 81)).shape
    torch.Size([1, 3, 9, 11])
    """

    architecture: ClassVar[str] = "deeplabv2"

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet101.tv_in1k",
        pretrained: bool = False,
        weights: str | Path | None = None,
        output_stride: int = 8,
        dilations: Sequence[int] = (6, 12, 18, 24),
        norm: Norm = "frozen",
        backbone_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, norm)
        check_switch("pretrained", pretrained)
        check_numbers("dilations", dilations, low=1, whole=True)
        self.settings = {
            "num_classes": num_classes, "backbone": backbone, "output_stride": output_stride,
            "dilations": list(dilations), "norm": norm, "backbone_kwargs": dict(backbone_kwargs or {}),
        }  # fmt: skip
        self.backbone = Backbone(backbone, pretrained, output_stride, atrous=True, kwargs=backbone_kwargs)
        if weights is not None:
            load_weights(self.backbone, weights)
        self.head = ASPP(self.backbone.num_features, num_classes, dilations)
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, C+1, h, w) logits at the output stride."""
        return self.head(self.backbone(images))

    def parts(self) -> tuple[nn.Module, ...]:
        """Backbone and head."""
        return self.backbone, self.head
