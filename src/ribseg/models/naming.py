"""Weights of vision transformers in other programs' names, as timm names them.

Hugging Face's ViT, DeiT, DINOv2 (with and without registers) and CLIP are renamed here; OpenAI's CLIP,
OpenCLIP and the original DINOv2 by timm's own filters, which also resize position embeddings.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ribseg.errors import ConfigError

# Keys that tell the naming: Hugging Face's; those that timm's filters know.
HUGGING_FACE = re.compile(r"(^|\.)(attention\.attention\.query|self_attn\.q_proj)\.weight$")
FILTERED = re.compile(r"^(module\.)?visual\.(class_embedding|trunk\.)|^mask_token$|^register_tokens$")
# Hugging Face's name -> that of timm, or of the original DINOv2, which timm's filter knows.
RENAMED = (
    (r"^(?:\w+\.)*?(?=embeddings\.|encoder\.|layernorm\.|(?:pre|post)_lay)", ""),
    (r"^embeddings\.(?:class_embedding|cls_token)$", "cls_token"),
    (r"^embeddings\.(register_tokens|mask_token)$", r"\1"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings?(?:\.weight)?$", "pos_embed"),
    (r"^embeddings\.patch_embeddings?\.(?:projection\.)?", "patch_embed.proj."),
    (r"^encoder\.layers?\.", "blocks."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.(?:attention\.output\.dense|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.(?:layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(?:layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^pre_layr?norm\.", "norm_pre."),
    (r"^(?:layernorm|post_layernorm)\.", "norm."),
    (r"^classifier\.", "head."),
)
PARTS = {"query": 0, "key": 1, "value": 2, "q": 0, "k": 1, "v": 2}
PART = re.compile(r"\.attn\.(query|key|value|q|k|v)\.(weight|bias)$")


def in_timms_names(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor] | None:
    """The weights under timm's names, with position embeddings of the network's size.

    Args:
        tensors: by name.
        network: timm's, for which they may be.

    Returns:
        None if the names are none of other programs, and the position embeddings have the network's size.

    Raises:
        ConfigError: the network has another activation than these weights were trained with.
    """
    own = getattr(network, "pos_embed", None)
    positions = tensors.get("pos_embed")
    resized = isinstance(own, Tensor) and positions is not None and positions.shape != own.shape
    hugging_face = any(HUGGING_FACE.search(key) for key in tensors)
    if not (resized or hugging_face or any(FILTERED.search(key) for key in tensors)):
        return None
    if "input_resolution" in tensors and not _has_quick_gelu(network):
        raise ConfigError(
            "these are OpenAI's weights, trained with QuickGELU: take timm's network of that name with "
            "`clip_quickgelu` in place of `clip`"
        )
    found = from_hugging_face(tensors) if hugging_face else dict(tensors)
    if "register_tokens" in found:
        found.setdefault("mask_token", found["cls_token"])  # by which timm's filter knows a DINOv2
    filtered = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    renamed: dict[str, Any] = found if filtered is None else filtered(found, network)
    return {key: value for key, value in renamed.items() if isinstance(value, Tensor)}


def from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a transformer of Hugging Face's under timm's names: query, key and value as one."""
    found: dict[str, Tensor] = {}
    joined: dict[str, list[Tensor]] = {}
    for key, value in tensors.items():
        name = key
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        part = PART.search(name)
        if part:
            joined.setdefault(PART.sub(rf".attn.qkv.{part[2]}", name), [value] * 3)[PARTS[part[1]]] = value
        else:
            found[name] = value
    found |= {name: torch.cat(parts) for name, parts in joined.items()}
    if found["cls_token"].ndim == 1:
        found["cls_token"] = found["cls_token"][None, None]
    if found["pos_embed"].ndim == 2:
        found["pos_embed"] = found["pos_embed"][None]
    return found


def _has_quick_gelu(network: nn.Module) -> bool:
    return any("QuickGELU" in type(module).__name__ for module in network.modules())
