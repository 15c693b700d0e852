"""Finds the chain of modules in the `forward_features` of a timm network by tracing a forward pass."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from ribseg.errors import ConfigError, reason
from ribseg.functional.state import evaluating

TRIAL_SIDE = 64
LARGE_TRIAL_SIDE = 256  # for networks without padding, such as Inception, which need larger images
# Errors of networks on images of unsupported size.
UNFIT = (RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
USABLE = (
    "use a convolutional network of timm such as a ResNet, ResNeXt, RegNet, EfficientNet, MobileNetV3 or "
    "ConvNeXt, a transformer such as a ViT, DeiT, EVA-02 or Swin, or your own module with features(x) and "
    "weight (classifier.model._target_)"
)

Result = TypeVar("Result")


class Block(NamedTuple):
    """A module of the chain.

    Attributes:
        name: of the module in the network: "layer1", "blocks.3".
        module: (N, D, h, w) -> (N, D', h', w').
        stride: image pixels per location of its output.
    """

    name: str
    module: nn.Module
    stride: int


@dataclass(eq=False)
class Call:
    """One traced call of a module: its input, its output, and the calls inside it."""

    name: str
    module: nn.Module
    given: Any
    result: Tensor | None
    inside: list["Call"]


def find_chain(name: str, network: nn.Module) -> tuple[list[Block], list[int]]:
    """The blocks of a timm network whose composition is its `forward_features`.

    A traced forward pass verifies that the input of each block is the output of the previous one. Containers
    with the end of a feature level inside are split into their children.

    Args:
        name: of the network, for messages.
        network: from `timm.create_model`; not changed.

    Returns:
        The blocks in order; and the number of blocks up to each feature level of timm, ascending, the last of
        which is that of all.

    Raises:
        ConfigError: the network is not such a chain, or its features are not (N, D, h, w).
    """
    info = [f["module"] for f in cast("list[dict[str, Any]]", getattr(network, "feature_info", []))]
    try:
        root = on_trial(network, lambda images: _recorded(network, info, images))
    except UNFIT as error:
        raise ConfigError(
            f"{name!r} fails for images of {TRIAL_SIDE} and {LARGE_TRIAL_SIDE} pixels ({reason(error)}), but "
            f"localization needs images of any size; {USABLE}"
        ) from error
    if root.result is None or root.result.shape[1] != getattr(network, "num_features", None):
        raise ConfigError(f"{name!r} does not give features of shape (N, D, h, w); {USABLE}")
    calls = _opened(root)
    names = [call.name for call in calls]
    places = [place for place in (_place(names, end) for end in info) if place is not None]
    if calls == [root] or len(set(names)) < len(names) or len(set(places)) < 3:
        raise ConfigError(
            f"{name!r} is not a chain of stages, so it cannot be split into trunk and tail; {USABLE}"
        )
    blocks = [Block(c.name, c.module, stride_of(root.given, cast(Tensor, c.result))) for c in calls]
    ends = sorted(set(places))[:-1]
    # VGG's last level is only a pooling layer: a stage needs parameters.
    while len(ends) > 2 and not any(list(block.module.parameters()) for block in blocks[ends[-1] :]):
        ends.pop()
    return blocks, [*ends, len(blocks)]


def stride_of(images: Tensor, maps: Tensor) -> int:
    """Image pixels per location, rounded to a power of two: maps without padding are slightly smaller."""
    return 2 ** round(math.log2(images.shape[-1] / maps.shape[-1]))


def trial_images(module: nn.Module, side: int = TRIAL_SIDE) -> Tensor:
    """(1, 3, side, side) zeros on the device of the module's weights."""
    return next(module.parameters()).new_zeros(1, 3, side, side)


@torch.no_grad()
def on_trial(network: nn.Module, call: Callable[[Tensor], Result]) -> Result:
    """What a call gives for a small image, or for a larger one if the network takes no small ones.

    Args:
        network: in evaluation mode meanwhile.
        call: of an image; if it fails for both with one of `UNFIT`, so does this.
    """
    with evaluating(network):
        try:
            return call(trial_images(network))
        except UNFIT:
            return call(trial_images(network, LARGE_TRIAL_SIDE))


def _place(names: list[str], end: str) -> int | None:
    """Number of blocks up to the one with the end of a feature level; None if no block has it."""
    matches = [index for index, name in enumerate(names) if end == name or end.startswith(f"{name}.")]
    return matches[-1] + 1 if matches else None


def _recorded(network: nn.Module, ends: list[str], images: Tensor) -> Call:
    """The call of `forward_features`, with those of its children and of the children of parents of ends."""
    root = Call("", network, images, None, [])
    stack, hooks = [root], []

    def enter(path: str, module: nn.Module, given: tuple[Any, ...]) -> None:
        call = Call(path, module, given[0] if given else None, None, [])
        stack[-1].inside.append(call)
        stack.append(call)

    def leave(module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        stack.pop().result = _maps(result)

    for path, module in network.named_modules():
        parent = path.rpartition(".")[0]
        if path and (not parent or any(end.startswith(f"{parent}.") for end in ends)):
            hooks.append(module.register_forward_pre_hook(partial(enter, path)))
            hooks.append(module.register_forward_hook(leave))
    try:
        root.result = _maps(cast(Any, network).forward_features(images))
    finally:
        for hook in hooks:
            hook.remove()
    return root


def _maps(result: Any) -> Tensor | None:
    return result if isinstance(result, Tensor) and result.ndim == 4 else None


def _opened(call: Call) -> list[Call]:
    """The calls inside a call if they are a chain from its input to its output; else the call itself."""
    value = call.given
    for part in call.inside:
        if part.given is not value or part.result is None:
            return [call]
        value = part.result
    if not call.inside or value is not call.result:
        return [call]
    return [inner for part in call.inside for inner in _opened(part)]
