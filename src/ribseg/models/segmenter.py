"""Trained segmenters with classes, normalization and palette; saved in one file that contains no code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD
from ribseg.data.io.masks import voc_palette
from ribseg.errors import ConfigError
from ribseg.models.weights_file import described, write_described

KIND = "segmenter"


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
        about = described(KIND, self.model, self.classes, self.mean, self.std)
        if None in about.values():
            raise ConfigError(
                f"{type(self.model).__name__} cannot be described in a file: it needs `architecture` (a "
                "string) and `settings` (a dictionary), as DeepLabV2 and SMPSegmenter have them"
            )
        about |= {"palette": self.palette.tobytes().hex(), "inference": dict(self.inference)}
        write_described(path, about, self.model.state_dict())
