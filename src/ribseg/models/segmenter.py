"""Trained segmenters with classes, normalization and palette; saved in one file that contains no code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD, three
from ribseg.data.io.masks import voc_palette
from ribseg.errors import ConfigError
from ribseg.models.deeplab import DeepLabV2
from ribseg.models.described import build_errors, check_architecture, read_described, write_described
from ribseg.models.smp import SMPSegmenter
from ribseg.models.weights import fitting, load_fitting
from ribseg.models.weights_file import read_file

KIND = "segmenter"
FORMER_KIND = "ribseg segmenter 1"  # in torch.save files of versions before 0.1.0
ARCHITECTURES: dict[str, type[DeepLabV2] | type[SMPSegmenter]] = {
    model.architecture: model for model in (DeepLabV2, SMPSegmenter)
}
KEYS = ("kind", "architecture", "settings", "classes", "mean", "std", "palette", "inference", "state_dict")


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A segmenter network with everything needed to use it.

    Attributes:
        model: (N, 3, H, W) normalised images -> (N, C+1, h, w) logits, label 0 is background.
        classes: C names, without background.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        palette: (256, 3) uint8 RGB colors of the labels.
        inference: default keyword arguments of `ribseg.models.inference.predict_labels`.
    """

    model: nn.Module
    classes: tuple[str, ...]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    palette: np.ndarray = field(default_factory=voc_palette)
    inference: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Writes the segmenter to one file, which `ribseg.load` reads.

        Args:
            path: must end in .safetensors; the file contains no code.

        Raises:
            ConfigError: another file extension; objects in settings or inference; or a model without
                `architecture` and `settings`, as `DeepLabV2` and `SMPSegmenter` have them.
            RibsegError: the file cannot be written.
        """
        description = {
            "kind": KIND,
            "architecture": getattr(self.model, "architecture", None),
            "settings": getattr(self.model, "settings", None),
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "palette": self.palette.tobytes().hex(),
            "inference": dict(self.inference),
        }
        if None in description.values():
            raise ConfigError(
                f"{type(self.model).__name__} cannot be described in a file: it needs `architecture` (a "
                "string) and `settings` (a dictionary), as DeepLabV2 and SMPSegmenter have them"
            )
        write_described(path, description, self.model.state_dict())


def load_segmenter(path: str | Path, device: str | torch.device = "cpu") -> Segmenter:
    """Reads a file of `Segmenter.save`, without executing code from it.

    Args:
        path: of the file.
        device: of the loaded model.

    Returns:
        The segmenter, with its model in evaluation mode.

    Raises:
        ConfigError: no such file, not a segmenter, or it needs a package that is not installed.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no segmenter at {file}; check the path")
    try:
        content = read_described(file) or read_file(file)
    except ConfigError as error:
        raise ConfigError(f"expected a segmenter of ribseg, but {error}") from error
    return segmenter_of(content, file, device)


def segmenter_of(content: Any, path: Path, device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter in the content of a file.

    Args:
        content: of the file, as `read_described` or `read_file` gives it.
        path: of the file, for messages.
        device: of the model, which is in evaluation mode.

    Raises:
        ConfigError: it is not a segmenter, or it needs a package that is not installed.
    """
    if not is_segmenter(content) or not set(KEYS) <= set(content):
        raise ConfigError(
            f"{path} is not a segmenter of ribseg. Expected the segmenter.safetensors in a folder "
            "segmenter-*/ of the store; ribseg.models.Segmenter(model, classes, ...).save(PATH) writes one"
        )
    check_architecture(path, "segmenter", content["architecture"], list(ARCHITECTURES))
    with build_errors(path, content["settings"]):
        return _built(content, device)


def _built(content: dict[str, Any], device: str | torch.device) -> Segmenter:
    model = ARCHITECTURES[content["architecture"]](**content["settings"])
    found = fitting(model.state_dict(), "the file", [], "this segmenter", content["state_dict"])
    load_fitting(model, found, "the file")
    palette = _palette(content["palette"])
    names = tuple(str(name) for name in content["classes"])
    mean, std = three(content["mean"]), three(content["std"])
    return Segmenter(model.to(device).eval(), names, mean, std, palette, dict(content["inference"]))


def _palette(stored: str | torch.Tensor) -> np.ndarray:
    """(256, 3) uint8 from a hexadecimal string, or from the tensor of files before 0.1.0."""
    if isinstance(stored, str):
        return np.frombuffer(bytes.fromhex(stored), np.uint8).reshape(256, 3).copy()
    palette = stored.numpy()
    if palette.shape != (256, 3) or palette.dtype != np.uint8:
        raise ValueError(f"expected a palette (256, 3) of uint8, found {palette.dtype} {palette.shape}")
    return palette


def is_segmenter(content: Any) -> bool:
    """Whether the content of a file is a segmenter of this or a former version."""
    return isinstance(content, Mapping) and content.get("kind") in (KIND, FORMER_KIND)
