"""timm's convolutional backbones as a chain of stages; timm's quirks are wrapped here and nowhere else."""

import contextlib
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.layers import BlurPool2d
from timm.layers.pool2d_same import AvgPool2dSame
from timm.models import FeatureInfo
from torch import Tensor, nn

from ribseg.errors import ConfigError, reason

POOLS = (nn.MaxPool2d, nn.AvgPool2d)
STRIDED = (nn.Conv2d, *POOLS, BlurPool2d)
PAD_TO = 32  # every CNN of timm gives whole maps for sides that are multiples of this
TRIAL_SIDE = 64
# What torch.load raises on files that are no checkpoint, or half of one.
BROKEN = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, ImportError, struct.error, pickle.UnpicklingError,
)  # fmt: skip
TRAINED_STAGES = 2  # layer3 and layer4 of a ResNet: what learns in the published recipe


class Backbone(nn.Module):
    """A timm CNN cut into a trunk (stem to layer2) and the last two stages.

    Args:
        name: timm model name, with or without a weights tag: "resnet50.tv_in1k".
        pretrained: load timm's weights (downloads them once).
        output_stride: 8, 16 or 32: image pixels per feature-map location.
        atrous: False makes the output stride by stride 1 and dilation 1 in the last stages, as the
            released programs of IRN and RIB do; True dilates instead (timm's `output_stride`).
        kwargs: passed on to timm, e.g. `channels`.

    Attributes:
        stages: ModuleList of the trunk and the last two stages, in order.
        num_features: D, channels of the last stage.

    Raises:
        ConfigError: unknown name, no download possible, or a network whose stages are not a plain chain.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        output_stride: int = 16,
        atrous: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"expected output_stride 8, 16 or 32, got {output_stride}")
        extra = dict(kwargs or {})
        if atrous:
            extra["output_stride"] = output_stride
        network = _create(name, pretrained, extra)
        _plain_pooling(network)
        info = cast(FeatureInfo, network.feature_info)
        blocks, ends = _chain(name, network, info.module_name())
        self.name = name
        self.num_features = int(info.channels()[-1])
        cuts = [0, *ends[-TRAINED_STAGES - 1 : -1], len(blocks)]
        self.stages = nn.ModuleList(
            nn.Sequential(OrderedDict(blocks[start:end])) for start, end in pairwise(cuts)
        )
        if not atrous:
            _set_output_stride(blocks, ends, info.reduction(), output_stride)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D, h, w)."""
        for stage in self.stages:
            images = stage(images)
        return images


def trial_image(backbone: Backbone) -> Tensor:
    """(1, 3, 64, 64) zeros, to see what the stages make of them."""
    return next(backbone.parameters()).new_zeros(1, 3, TRIAL_SIDE, TRIAL_SIDE)


def padding(side: int, crop_size: int) -> int:
    """How many pixels a side lacks of `crop_size`; where it is longer, of the next multiple of 32."""
    return max(crop_size, -(-side // PAD_TO) * PAD_TO) - side


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        similar = timm.list_models(f"*{re.split('[_.0-9]', name)[0]}*")[:5]
        raise ConfigError(f"timm knows no model {name!r}; similar names: {', '.join(similar) or 'none'}")
    try:
        return timm.create_model(name, features_only=True, pretrained=pretrained, **kwargs)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        # huggingface_hub raises subclasses of these without a network, or for an unknown weights tag.
        raise ConfigError(
            f"could not load the pretrained weights of {name!r}: {error}\n"
            "Connect to the internet once, or give a file of weights with classifier.model.weights=PATH, "
            "or train from scratch with classifier.model.pretrained=false classifier.model.freeze=none."
        ) from error


def _chain(name: str, network: nn.Module, stages: list[str]) -> tuple[list[tuple[str, nn.Module]], list[int]]:
    """The network's blocks in order, and after how many of them each stage ends."""
    wanted = [stage.replace(".", "_") for stage in stages]
    blocks: list[tuple[str, nn.Module]] = []
    for key, child in network.named_children():
        if key not in wanted and any(w.startswith(f"{key}_") for w in wanted):
            blocks += [(f"{key}_{index}", block) for index, block in child.named_children()]
        else:
            blocks.append((key, child))
    keys = [key for key, _ in blocks]
    if len(wanted) < 3 or not set(wanted) <= set(keys):
        raise ConfigError(
            f"{name!r} cannot be cut into stages one after the other; use a CNN of timm such as a ResNet, "
            "ResNeXt, RegNet, EfficientNet, MobileNetV3 or ConvNeXt, or hand RIB your own module with "
            "features(x) and weight"
        )
    # Blocks after the last feature belong to timm's classification head, if there are any.
    ends = [keys.index(key) + 1 for key in wanted]
    return blocks[: ends[-1]], ends


def _plain_pooling(module: nn.Module) -> None:
    """Replaces timm's pooling that asks for sizes, which `torch.export` cannot save, by its equal."""
    for name, child in module.named_children():
        if isinstance(child, AvgPool2dSame) and child.stride in (1, (1, 1)):
            rows, columns = (side - 1 for side in _pair(child.kernel_size))
            padding = nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            setattr(module, name, nn.Sequential(padding, nn.AvgPool2d(child.kernel_size, 1)))
        else:
            _plain_pooling(child)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _set_output_stride(
    blocks: list[tuple[str, nn.Module]], ends: list[int], reductions: list[int], output_stride: int
) -> None:
    starts = [0, *ends[:-1]]
    for start, end, reduction in zip(starts, ends, reductions, strict=True):
        if reduction > output_stride:
            for _, block in blocks[start:end]:
                _remove_strides(block)


def _remove_strides(module: nn.Module) -> None:
    for child in module.children():
        _remove_strides(child)
    if isinstance(module, POOLS) and module.kernel_size == module.stride:
        module.kernel_size = module.stride = 1  # a pure down-sampling, as in VGG or ResNet-D's shortcut
        module.padding = 0
    if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride != (1, 1):
        module.padding = "same"  # patches without overlap, as in ConvNeXt: keep the size
    if isinstance(module, STRIDED) and module.stride not in (1, (1, 1)):
        module.stride = (1, 1) if isinstance(module, nn.Conv2d) else 1


def load_weights(backbone: Backbone, path: str | Path) -> None:
    """Loads a file of backbone weights: .safetensors, or .pth read with `weights_only=True`.

    Keys may be timm's or torchvision's (`layer1.0...`); a classification head in the file is left out.

    Args:
        backbone: is changed in place.
        path: the file; "demo" names the built-in demo backbone.

    Raises:
        ConfigError: no such file, not a state dict, or weights that do not fit.
    """
    file = resolve_weights(path)
    state = read_state_dict(file)
    flat: dict[str, Tensor] = {}
    for key, tensor in backbone.state_dict().items():
        source = key.split(".", 2)[2]  # "stages.1.layer3.0.conv1.weight" -> "layer3.0.conv1.weight"
        for candidate in (source, re.sub(r"^(\w+?)_(\d+)", r"\1.\2", source)):
            if candidate in state:
                flat[key] = state[candidate]
                break
        else:
            if not key.endswith("num_batches_tracked"):
                raise ConfigError(
                    f"{file} has no weights {source!r}: it does not belong to {backbone.name!r}"
                )
            flat[key] = tensor
    try:
        backbone.load_state_dict(flat)
    except RuntimeError as error:
        raise ConfigError(f"the weights in {file} do not fit {backbone.name!r}: {error}") from error


def resolve_weights(path: str | Path) -> Path:
    """The file that a setting names; "demo" is the built-in backbone."""
    return (
        Path(__file__).parents[1] / "assets" / "demo_backbone.safetensors" if path == "demo" else Path(path)
    )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads tensors from .safetensors or a torch file, never executing what is in it.

    Raises:
        ConfigError: no such file, or not a dictionary of tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no file of weights at {file}; check the path")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (SafetensorError, *BROKEN) as error:
            raise ConfigError(f"{file} is not a readable safetensors file: {reason(error)}") from error
    return _read_torch_file(file)


def load_released(module: nn.Module, state: Mapping[str, Tensor], path: str | Path, what: str) -> None:
    """Loads renamed weights of a released checkpoint; counters of BatchNorm, which nothing needs, may lack.

    Args:
        module: is changed in place.
        state: its weights.
        path: of the file, for messages.
        what: it should be a checkpoint of, for messages.

    Raises:
        ConfigError: weights are missing, unknown, or of other shapes.
    """
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"{path} is not a checkpoint of {what}: {reason(error)}") from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ConfigError(
            f"{path} is not a checkpoint of {what}: {len(missing)} weights are missing {missing[:3]}, "
            f"{len(unexpected)} are unknown {unexpected[:3]}"
        )


def read_torch_file(file: Path) -> Any:
    """What a torch file holds, read with `weights_only=True`; None where it cannot be read so."""
    with contextlib.suppress(*BROKEN):
        return torch.load(file, map_location="cpu", weights_only=True)
    return None


def _read_torch_file(file: Path) -> dict[str, Tensor]:
    state = read_torch_file(file)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()) or not state:
        raise ConfigError(
            f"{file} does not hold a dictionary of tensors that can be read safely (weights_only=True); save "
            "it again with torch.save(model.state_dict(), path)"
        )
    return {str(key).removeprefix("module."): value for key, value in state.items()}
