"""CLIP's image tower with its projection into the space of the texts, for methods that do not train."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from ribseg.checks import check_switch
from ribseg.data.io.images import Channels, three
from ribseg.errors import ConfigError
from ribseg.models.backbone import create_network
from ribseg.models.weights import load_fitting
from ribseg.models.weights_file import read_state_dict

# The weights of vit_base_patch16_clip_224.openai, with the activation that they were trained with.
OPENAI = "vit_base_patch16_clip_quickgelu_224.openai"
OFFLINE = (
    "Connect to the internet once, or give a file of weights (of timm or open_clip) with weights=FILE and "
    "pretrained=false."
)
OPEN_CLIP = "visual.class_embedding"  # a name in open_clip's files and OpenAI's state dictionaries


class ClipTower(nn.Module):
    """A frozen ViT of CLIP; images are embedded as the mean over their patches, as in CLIP-ES.

    Lin et al., CVPR 2023, section 3.2: the class token's embedding, which CLIP was trained with, is replaced
    by the mean, because its gradient with respect to the patches of the last block is zero otherwise. The
    position embedding is resized bilinearly, as in the released program (timm resizes it bicubically).

    Args:
        name: timm's name of a ViT of CLIP, with or without a tag of weights.
        pretrained: load timm's weights (downloaded once).
        weights: a file of weights (.safetensors, or .pth read with `weights_only=True`), with timm's or
            open_clip's names, which replaces a download.
        kwargs: passed on to timm.

    Attributes:
        patch: side of a patch in pixels.
        width: E, length of an embedding.
        mean: per channel, of pixels in [0, 1], which the weights were trained with.
        std: as `mean`.

    Raises:
        ConfigError: no such network, or one of another kind; its weights cannot be loaded.
    """

    def __init__(
        self,
        name: str = OPENAI,
        pretrained: bool = True,
        weights: str | Path | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_switch("pretrained", pretrained)
        network = create_network(name, pretrained and weights is None, dict(kwargs or {}), OFFLINE)
        _check_kind(name, network)
        self.network = cast(Any, network)
        if weights is not None:
            content = read_state_dict(weights)
            if OPEN_CLIP in content:
                content = checkpoint_filter_fn(content, self.network)
            load_fitting(self.network, weights, f"the image tower {name!r}", content)
        self.patch = int(self.network.patch_embed.patch_size[0])
        self.width = int(self.network.head.out_features)
        self.mean: Channels = three(self.network.pretrained_cfg["mean"])
        self.std: Channels = three(self.network.pretrained_cfg["std"])
        self.requires_grad_(False).eval()

    @property
    def attentions(self) -> list[nn.Module]:
        """The attention of each block, for `ribseg.models.attention.recorded_attention`."""
        return [block.attn for block in self.network.blocks]

    @property
    def last_norm(self) -> nn.Module:
        """The first norm of the last block, whose output Grad-CAM is made of: (N, 1 + h * w, D)."""
        return cast(nn.Module, self.network.blocks[-1].norm1)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) images, normalised -> (N, 1 + h * w, D), the input of the last block.

        Args:
            images: with sides that are multiples of `patch`.
        """
        network = self.network
        patches = network.patch_embed.proj(images)
        position = resample_abs_pos_embed(
            network.pos_embed, list(patches.shape[2:]), interpolation="bilinear", antialias=False
        )
        start = network.cls_token.expand(len(images), -1, -1)
        tokens = network.norm_pre(torch.cat([start, patches.flatten(2).transpose(1, 2)], 1) + position)
        for block in network.blocks[:-1]:
            tokens = block(tokens)
        return cast(Tensor, tokens)

    def embed(self, tokens: Tensor) -> Tensor:
        """(N, 1 + h * w, D), from `tokens` -> (N, E): last block, mean over patches, projection."""
        network = self.network
        patches = network.norm(network.blocks[-1](tokens))[:, 1:]
        return cast(Tensor, network.head(patches.mean(1)))


def _check_kind(name: str, network: nn.Module) -> None:
    """Raises a ConfigError unless a network is a ViT with a norm before its blocks and a projection."""
    known: Any = network
    usual = (
        isinstance(network, VisionTransformer)
        and known.num_prefix_tokens == 1
        and known.attn_pool is None
        and not isinstance(known.norm_pre, nn.Identity)
        and isinstance(known.head, nn.Linear)
        and known.pos_embed.shape[1] == 1 + known.patch_embed.num_patches
        and known.patch_embed.grid_size[0] == known.patch_embed.grid_size[1]
    )
    if not usual:
        raise ConfigError(
            f"expected a ViT of CLIP out of timm.list_models('vit*clip*'), such as {OPENAI}, got {name!r}"
        )
