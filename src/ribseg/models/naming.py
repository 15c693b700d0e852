"""Weights of vision transformers in other programs' names, as timm names them.

Hugging Face's ViT, DeiT, DINOv2 (with and without registers) and CLIP are renamed here; OpenAI's CLIP,
OpenCLIP and the original DINOv2 by timm's own filters, which also resize position embeddings.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
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


def in_timms_names(
    tensors: Mapping[str, Tensor], network: nn.Module, config: Path | None = None
) -> dict[str, Tensor] | None:
    """The weights under timm's names, with position embeddings of the network's size.

    Args:
        tensors: by name.
        network: timm's, for which they may be.
        config: Hugging Face's config.json, which says the activation of a CLIP.

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
    check_activation(tensors, network, config)
    found = from_hugging_face(tensors) if hugging_face else dict(tensors)
    if "register_tokens" in found:
        found.setdefault("mask_token", found["cls_token"])  # by which timm's filter knows a DINOv2
    filtered = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    renamed: dict[str, Any] = found if filtered is None else filtered(found, network)
    return {key: value for key, value in renamed.items() if isinstance(value, Tensor)}


def from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a transformer of Hugging Face's under timm's names: query, key and value as one."""
    found: dict[str, Tensor] = {}
    joined: dict[str, dict[int, Tensor]] = {}
    for key, value in tensors.items():
        name = key
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        part = PART.search(name)
        if part:
            joined.setdefault(PART.sub(rf".attn.qkv.{part[2]}", name), {})[PARTS[part[1]]] = value
        else:
            found[name] = value
    # With one of the three absent, the whole is missing.
    found |= {n: torch.cat([parts[i] for i in range(3)]) for n, parts in joined.items() if len(parts) == 3}
    shapes = {"cls_token": (1, 1, -1), "pos_embed": (1, -1, found["patch_embed.proj.weight"].shape[0])}
    return found | {name: found[name].reshape(shape) for name, shape in shapes.items() if name in found}


def check_activation(tensors: Mapping[str, Tensor], network: nn.Module, config: Path | None) -> None:
    """Checks that a CLIP was trained with the network's activation, which its weights do not show.

    Raises:
        ConfigError: it was not, or that is not known.
    """
    clip = any(key.endswith(("pre_layrnorm.weight", "pre_layernorm.weight")) for key in tensors)
    if "input_resolution" in tensors:
        activation = "quick_gelu"
    elif clip and config is not None and config.is_file():
        about = json.loads(config.read_text())
        activation = about.get("hidden_act") or about.get("vision_config", {}).get("hidden_act", "quick_gelu")
    elif clip:
        raise ConfigError(
            "these weights of a CLIP were trained with QuickGELU (OpenAI's) or GELU (most of OpenCLIP's), "
            "which they do not show: put the config.json of the model beside them"
        )
    else:
        return
    quick = any("QuickGELU" in type(module).__name__ for module in network.modules())
    if quick != (activation == "quick_gelu"):
        raise ConfigError(
            f"these weights were trained with {activation}: take timm's network of that name with "
            f"`{'clip' if quick else 'clip_quickgelu'}` in place of `{'clip_quickgelu' if quick else 'clip'}`"
        )
