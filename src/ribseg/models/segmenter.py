"""Segmenters with all that is needed to use them, in one file that is read without executing anything."""

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ribseg.data.io.files import atomic_write
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD
from ribseg.data.io.masks import voc_palette
from ribseg.errors import ConfigError, reason
from ribseg.models.deeplab import DeepLabV2
from ribseg.models.smp import SMPSegmenter
from ribseg.models.weights import fitting, load_fitting, read_file

KIND = "ribseg segmenter 1"  # stands in the file; the number is that of its layout
ARCHITECTURES: dict[str, type[DeepLabV2] | type[SMPSegmenter]] = {
    model.architecture: model for model in (DeepLabV2, SMPSegmenter)
}
KEYS = ("kind", "architecture", "settings", "classes", "mean", "std", "palette", "inference", "state_dict")


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A network and what belongs to it.

    Attributes:
        model: (N, 3, H, W) normalised images -> (N, C+1, h, w) logits, label 0 is background.
        classes: C names, without background.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        palette: (256, 3) uint8 RGB colours of the labels.
        inference: keyword arguments of `ribseg.methods.inference.predict_labels` with which it is to be used.
    """

    model: nn.Module
    classes: tuple[str, ...]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    palette: np.ndarray = field(default_factory=voc_palette)
    inference: Mapping[str, Any] = field(default_factory=dict)


def save_segmenter(path: str | Path, segmenter: Segmenter) -> None:
    """Writes a segmenter atomically; `torch.load(path, weights_only=True)` reads it.

    Args:
        path: of the file.
        segmenter: its model is a `DeepLabV2` or an `SMPSegmenter`, or has their `architecture` and
            `settings`.

    Raises:
        ConfigError: settings or inference hold objects.
    """
    model = segmenter.model
    content = {
        "kind": KIND,
        "architecture": model.architecture,
        "settings": model.settings,
        "classes": list(segmenter.classes),
        "mean": list(segmenter.mean),
        "std": list(segmenter.std),
        "palette": torch.from_numpy(segmenter.palette.copy()),
        "inference": dict(segmenter.inference),
        "state_dict": {name: value.cpu() for name, value in model.state_dict().items()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path} would not be readable without executing code: settings and inference may hold only "
            f"numbers, texts, lists and dictionaries, got {model.settings}, {dict(segmenter.inference)}"
        ) from error
    atomic_write(path, buffer.getvalue())


def load_segmenter(path: str | Path, device: str | torch.device = "cpu") -> Segmenter:
    """Reads what `save_segmenter` wrote; nothing in the file is executed.

    Args:
        path: of the file.
        device: where the model goes.

    Returns:
        The segmenter, its model in evaluation mode.

    Raises:
        ConfigError: no such file, not a segmenter, or one of a package that is not installed.
    """
    content = _read(Path(path))
    if content["architecture"] not in list(ARCHITECTURES):
        raise ConfigError(
            f"{path} holds a segmenter of the unknown architecture {content['architecture']!r}; this version "
            f"knows {', '.join(ARCHITECTURES)}"
        )
    try:
        return _built(content, device)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        raise ConfigError(
            f"the weights in {path} do not fit their own settings {content['settings']}; was the file "
            f"written by another version? {reason(error)}"
        ) from error


def _built(content: dict[str, Any], device: str | torch.device) -> Segmenter:
    model = ARCHITECTURES[content["architecture"]](**content["settings"])
    found = fitting(model.state_dict(), "the file", [], "this segmenter", content["state_dict"])
    load_fitting(model, found, "the file")
    palette = content["palette"].numpy()
    if palette.shape != (256, 3) or palette.dtype != np.uint8:
        raise ValueError(f"expected a palette (256, 3) of uint8, found {palette.dtype} {palette.shape}")
    names = tuple(str(name) for name in content["classes"])
    mean, std = _three(content["mean"]), _three(content["std"])
    return Segmenter(model.to(device).eval(), names, mean, std, palette, dict(content["inference"]))


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no segmenter at {path}; check the path")
    try:
        content = read_file(path)
    except ConfigError as error:
        raise ConfigError(f"expected a segmenter that ribseg wrote, but {error}") from error
    if not isinstance(content, dict) or content.get("kind") != KIND or not set(KEYS) <= set(content):
        raise ConfigError(
            f"{path} is no segmenter that ribseg wrote ({KIND!r}). Expected the segmenter.pt in a folder "
            "segmenter-*/ of the store; ribseg.models.save_segmenter makes one from a model"
        )
    return content
