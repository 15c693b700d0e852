"""Timm's transformers as a trunk and two last stages; only this module knows their details.

Between stages the tokens are a map, as those of a CNN, so whoever splits, joins or measures features need not
know of them. Class and register tokens come first, in additional rows above the patches, which the last stage
removes:

    (N, p + h * w, D) tokens <-> (N, D, ceil(p / w) + h, w) map
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.models import model_entrypoint
from torch import Tensor, nn

from ribseg.errors import ConfigError, reason
from ribseg.functional.state import evaluating
from ribseg.models.chain import UNFIT, USABLE
from ribseg.models.pooled_norm import PooledLayerNorm

TRAINED_BLOCKS = 2  # the last ones, in the place of layer3 and layer4 of a ResNet
TRIAL = (97, 81)  # height and width of an image that no patch size divides
HEADS = ("norm", "fc_norm", "head_drop", "head", "head_dist")  # what timm has after the blocks
RANDOM_ROTATIONS = ("shift_coords", "jitter_coords", "rescale_coords")
ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}


class Family(NamedTuple):
    """Networks of a module of timm.

    Attributes:
        blocks: their attribute with the blocks, or stages, of which the last two are adapted.
        channels_last: whether features are (N, h, w, D) maps; else (N, L, D) tokens.
        settings: keyword arguments with which timm builds them for images of any size.
    """

    blocks: str
    channels_last: bool
    settings: Mapping[str, Any]


FAMILIES = {
    "deit": Family("blocks", False, ANY_SIZE),
    "eva": Family("blocks", False, ANY_SIZE),
    "mambaout": Family("stages", True, {}),
    "swin_transformer": Family("layers", True, {"strict_img_size": False}),
    "swin_transformer_v2": Family("layers", True, {"strict_img_size": False}),
    "vision_transformer": Family("blocks", False, ANY_SIZE),
    "vision_transformer_hybrid": Family("blocks", False, ANY_SIZE),
}


class Rotation(NamedTuple):
    """The rotary position embedding of a block.

    Not a module, because its weights, if it has any, belong to the trunk, which computes the same embedding.

    Attributes:
        rope: of timm's network.
        layer: number of the block, for an embedding per block; None if all have the same one.
    """

    rope: Any
    layer: int | None

    def of(self, size: tuple[int, int]) -> Tensor:
        """The embedding of h x w patches, as the blocks take it."""
        embedding = self.rope.get_embed(shape=size)
        return embedding if self.layer is None else embedding[self.layer]


class TokenTrunk(nn.Module):
    """All of a network before its last blocks: (N, 3, H, W) images -> a map of tokens.

    Args:
        network: timm's, without its last blocks, norm and head.
        prefix: p, class and register tokens.
        patch: side in pixels; timm zero-pads images at the right and bottom to multiples of it.
    """

    def __init__(self, network: nn.Module, prefix: int, patch: int) -> None:
        super().__init__()
        self.network, self.prefix, self.patch = network, prefix, patch

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D, ceil(p / w) + h, w) with h = ceil(H / patch), w = ceil(W / patch)."""
        tokens = cast(Any, self.network).forward_features(images)
        return map_of(tokens, self.prefix, -(-images.shape[-1] // self.patch))


class TokenStage(nn.Sequential):
    """A block, and after the last one the norm: a map of tokens -> a map of tokens, or of patches.

    Args:
        modules: the block first, by name.
        prefix: p, class and register tokens.
        rotation: of the block; None without rotary positions.
        last: whether the class and register tokens are removed.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], prefix: int, rotation: Rotation | None, last: bool
    ) -> None:
        super().__init__(OrderedDict(modules))
        self.prefix, self.rotation, self.last = prefix, rotation, last

    def forward(self, maps: Tensor) -> Tensor:
        """(N, D, ceil(p / w) + h, w) -> the same; the last stage: (N, D, h, w)."""
        rows, width = -(-self.prefix // maps.shape[-1]), maps.shape[-1]
        block, *others = self
        tokens = tokens_of(maps, self.prefix)
        given = {} if self.rotation is None else {"rope": self.rotation.of((maps.shape[-2] - rows, width))}
        tokens = block(tokens, **given)
        for module in others:
            tokens = module(tokens)
        maps = map_of(tokens, self.prefix, width)
        return maps[:, :, rows:] if self.last else maps


class ChannelsLastTrunk(nn.Module):
    """All of a hierarchical network before its last two stages: (N, 3, H, W) images -> (N, D, h, w).

    Args:
        network: timm's, without its last stages, norm and head.
        multiple: images are zero-padded at the right and bottom to sides that are multiples of it.
    """

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D, h, w)."""
        bottom, right = (-side % self.multiple for side in images.shape[-2:])
        features = cast(Any, self.network).forward_features(F.pad(images, (0, right, 0, bottom)))
        return features.permute(0, 3, 1, 2)


class ChannelsLastStage(nn.Sequential):
    """A stage over (N, h, w, D), and after the last one the norm, between channels-first maps."""

    def forward(self, maps: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, D', h', w')."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def map_of(tokens: Tensor, prefix: int, width: int) -> Tensor:
    """(N, p + h * w, D) -> (N, D, ceil(p / w) + h, w); zeros fill the last row of the first p tokens."""
    if fill := -prefix % width:
        zeros = tokens.new_zeros(len(tokens), fill, tokens.shape[-1])
        tokens = torch.cat([tokens[:, :prefix], zeros, tokens[:, prefix:]], 1)
    return tokens.unflatten(1, (-1, width)).permute(0, 3, 1, 2)


def tokens_of(maps: Tensor, prefix: int) -> Tensor:
    """(N, D, ceil(p / w) + h, w) -> (N, p + h * w, D); the inverse of `map_of`.

    >>> tokens = torch.randn(2, 2 + 3 * 4, 8)
    >>> maps = map_of(tokens, prefix=2, width=4)
    >>> maps.shape, torch.equal(tokens_of(maps, prefix=2), tokens)
    (torch.Size([2, 8, 4, 4]), True)
    """
    tokens = maps.permute(0, 2, 3, 1).flatten(1, 2)
    fill = -prefix % maps.shape[-1]
    return torch.cat([tokens[:, :prefix], tokens[:, prefix + fill :]], 1) if fill else tokens


def family_of(name: str) -> Family | None:
    """The family of a timm model; None if it is of none of `FAMILIES`, or timm does not know it."""
    try:
        module = model_entrypoint(name).__module__
    except (RuntimeError, KeyError):
        return None
    return FAMILIES.get(module.rpartition(".")[2]) if module.startswith("timm.models.") else None


def family_settings(name: str, family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for timm: the given ones, and those for images of any size.

    Raises:
        ConfigError: a given one contradicts these.
    """
    for key, value in {**family.settings, "patch_drop_rate": 0}.items():
        if given.get(key, value) != value:
            raise ConfigError(
                f"expected {key}={value} for {name!r}, because localization needs every patch of images of "
                f"any size, got {given[key]}; leave it out"
            )
    return {**given, **family.settings}


def token_stages(
    name: str, network: nn.Module, family: Family, output_stride: int, atrous: bool
) -> list[nn.Module]:
    """The trunk and the last two blocks, or stages, of a network; they take it apart.

    Their composition gives timm's `forward_features` as a map of the patches; where timm's norm is that of
    their average, divided so that the average of the map is timm's (see `PooledLayerNorm`).

    Args:
        name: of the network, for messages.
        network: of timm, built with `family_settings`; it cannot be used afterwards.
        family: of the network.
        output_stride: must be the side of its patches, or the stride of its last stage.
        atrous: must be false.

    Raises:
        ConfigError: the network cannot be split or takes no images of any size, or one of the settings has no
            meaning for it.
    """
    if atrous:
        raise ConfigError(
            f"{name!r} is a network over patches, for which atrous=true has no meaning; set atrous=false, or "
            "use a CNN such as a ResNet"
        )
    last = _without_last(name, network, family.blocks)
    _check_positions(name, network)
    stride = token_stride(network)
    stages = _stages(network, family, last, stride)
    _check_size(name, stages, stride)
    if stride != output_stride:
        raise ConfigError(
            f"{name!r} has one location per {stride} x {stride} pixels, which cannot be changed: expected "
            f"output_stride={stride}, got {output_stride}"
        )
    return stages


def token_stride(network: nn.Module) -> int:
    """Image pixels per location of the last features, as timm says: the side of the patches of a ViT."""
    return int(cast(Any, network).feature_info[-1]["reduction"])


def _without_last(name: str, network: nn.Module, attribute: str) -> dict[str, nn.Module]:
    """The last blocks by their names, "blocks_10" and "blocks_11", which are taken out of the network."""
    blocks = getattr(network, attribute, None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or len(blocks) <= TRAINED_BLOCKS:
        raise ConfigError(
            f"{name!r} needs more than {TRAINED_BLOCKS} {attribute}, to be split into trunk and tail"
        )
    first = len(blocks) - TRAINED_BLOCKS
    setattr(network, attribute, blocks[:first])
    return {f"{attribute}_{first + n}": block for n, block in enumerate(blocks[first:])}


def _stages(network: Any, family: Family, last: Mapping[str, nn.Module], stride: int) -> list[nn.Module]:
    (first, block), (name, end) = last.items()
    parts = OrderedDict({first: block}), OrderedDict({name: end, **_final_norm(network)})
    if family.channels_last:
        # A stem of convolutions takes any size; patches, windows and their merging take multiples.
        multiple = stride if hasattr(network, "patch_embed") else 1
        return [ChannelsLastTrunk(_without_head(network), multiple), *map(ChannelsLastStage, parts)]
    prefix = int(network.num_prefix_tokens)
    return [
        TokenTrunk(_without_head(network), prefix, stride),
        TokenStage(parts[0], prefix, _rotation(network, first), last=False),
        TokenStage(parts[1], prefix, _rotation(network, name), last=True),
    ]


def _final_norm(network: nn.Module) -> dict[str, nn.Module]:
    """The norm after the blocks by its name, or the one that timm applies after pooling; empty without."""
    norm = getattr(network, "norm", None)
    if norm is not None and not isinstance(norm, nn.Identity):
        return {"norm": norm}
    pooled = getattr(network, "fc_norm", None)
    if not isinstance(pooled, nn.LayerNorm):
        return {}
    return {"fc_norm": PooledLayerNorm(pooled, int(cast(int, network.num_prefix_tokens)))}


def _rotation(network: nn.Module, block: str) -> Rotation | None:
    rope = getattr(network, "rope", None)
    if rope is None:
        return None
    layer = int(block.rpartition("_")[2])
    return Rotation(rope, layer if getattr(network, "rope_mixed", False) else None)


def _check_positions(name: str, network: Any) -> None:
    """Raises a ConfigError unless patches are square and their positions fixed."""
    if hasattr(network, "patch_embed"):
        rows, columns = network.patch_embed.feat_ratio(as_scalar=False)
        if rows != columns:
            raise ConfigError(f"expected square patches of {name!r}, got {rows} x {columns} pixels")
    rope = getattr(network, "rope", None)
    drawn = [f"rope_{part}" for part in RANDOM_ROTATIONS if getattr(rope, part, None) is not None]
    if drawn:
        raise ConfigError(
            f"{name!r} draws its positions at random in a training, for each stage anew; leave out "
            f"{', '.join(drawn)}, with backbone_kwargs={{{', '.join(f'{key}: null' for key in drawn)}}}"
        )


def _without_head(network: Any) -> nn.Module:
    """The network with what comes after its blocks removed, in place."""
    for part in HEADS:
        if isinstance(getattr(network, part, None), nn.Module):
            setattr(network, part, nn.Identity())
    if isinstance(getattr(network, "attn_pool", None), nn.Module):
        network.attn_pool = None
    return cast(nn.Module, network)


def _check_size(name: str, stages: Sequence[nn.Module], stride: int) -> None:
    """Raises a ConfigError unless the stages give ceil(H / stride) x ceil(W / stride) features."""
    network = nn.Sequential(*stages)
    images = next(network.parameters()).new_zeros(1, 3, *TRIAL)
    try:
        with evaluating(network), torch.no_grad():
            size = tuple(network(images).shape[-2:])
    except UNFIT as error:
        raise ConfigError(f"{name!r} does not take images of any size: {reason(error)}; {USABLE}") from error
    if size != tuple(-(-side // stride) for side in TRIAL):
        raise ConfigError(
            f"{name!r} gives {size[0]} x {size[1]} features for {TRIAL[0]} x {TRIAL[1]} pixels, which is not "
            f"one per {stride} x {stride} pixels; {USABLE}"
        )
