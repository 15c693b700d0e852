"""The attention between the patches of timm's transformers, as they compute it themselves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ribseg.errors import ConfigError
from ribseg.functional.state import evaluating
from ribseg.models.tokens import TokenTrunk

ADVICE = (
    "use a ViT, DeiT, EVA-02 or DINOv2, such as classifier=deit_small or classifier=vit_clip; a CNN has no "
    "attention between patches, and that of a Swin ends at its windows"
)


def attention_layers(network: nn.Module, blocks: int | None = None) -> list[nn.Module]:
    """The modules of a transformer that attend from every patch to every other one, first block first.

    Args:
        network: a `ribseg.Classifier` or another module over a ViT's `ribseg.models.tokens.TokenTrunk`.
        blocks: number of last ones; None for all.

    Raises:
        ConfigError: it has none, as a CNN or a Swin, or fewer than these.
    """
    _trunk(network)
    # timm's interface of an attention whose matrix goes through a dropout
    found = [m for m in network.modules() if hasattr(m, "fused_attn") and hasattr(m, "attn_drop")]
    if not found:
        raise ConfigError(f"the blocks of {_name(network)} do not compute attention as a matrix; {ADVICE}")
    if blocks is not None and blocks > len(found):
        number = f"{len(found)}, the number of blocks of {_name(network)}"
        raise ConfigError(f"expected blocks <= {number}, got {blocks}")
    return found[-blocks:] if blocks else found


def patch_side(network: nn.Module) -> int:
    """Side in pixels of a patch of a transformer; raises a ConfigError as `attention_layers`."""
    return _trunk(network).patch


@torch.no_grad()
def patch_attention(network: nn.Module, images: Tensor, blocks: int = 8) -> Tensor:
    """The attention between patches, averaged over the heads and the last blocks.

    Args:
        network: with `features(x)`, over a ViT, see `attention_layers`; used in evaluation mode, not changed.
        images: (N, 3, H, W), normalised.
        blocks: number of last blocks; published: 8 of 12.

    Returns:
        (N, h * w, h * w) float32 in [0, 1], from the patch of a row to those of the columns, with
        h = ceil(H / patch) and w = ceil(W / patch). A row sums to less than 1 by what it attends to class and
        register tokens.

    Raises:
        ConfigError: the network has no attention between patches, or fewer blocks.
    """
    with evaluating(network), recorded_attention(attention_layers(network, blocks)) as recorded:
        cast(Any, network).features(images)
    return mean_attention(recorded, _trunk(network).prefix)


def mean_attention(recorded: Sequence[Tensor], prefix: int) -> Tensor:
    """(N, L, L) attention of each block -> the (N, L - p, L - p) mean without class and register tokens."""
    total = recorded[0][:, prefix:, prefix:].clone()
    for attention in recorded[1:]:  # one by one: a stack would need as much memory again
        total += attention[:, prefix:, prefix:]
    return total / len(recorded)


@contextmanager
def recorded_attention(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yields a list that takes the attention of each call of the layers: (N, L, L) float32, mean over heads.

    Inside they compute it as a matrix, which the fused kernels never do, so results may differ by rounding.
    """
    recorded: list[Tensor] = []

    def record(dropout: nn.Module, given: tuple[Tensor, ...]) -> None:
        recorded.append(given[0].detach().float().mean(1))

    modules: list[Any] = list(layers)
    fused = [module.fused_attn for module in modules]
    handles = [module.attn_drop.register_forward_pre_hook(record) for module in modules]
    try:
        for module in modules:
            module.fused_attn = False
        yield recorded
    finally:
        for module, flag, handle in zip(modules, fused, handles, strict=True):
            module.fused_attn = flag
            handle.remove()


def _trunk(network: nn.Module) -> TokenTrunk:
    trunk = next((module for module in network.modules() if isinstance(module, TokenTrunk)), None)
    if trunk is None:
        raise ConfigError(f"{_name(network)} has no attention between patches; {ADVICE}")
    return trunk


def _name(network: nn.Module) -> str:
    """The name of the network's backbone, or of its class."""
    name = getattr(getattr(network, "backbone", None), "name", None)
    return type(network).__name__ if name is None else repr(name)
