"""The mask of one image: labels at a threshold, refined to the edges of the image."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ribseg.checks import check_choice, check_number
from ribseg.errors import ConfigError
from ribseg.functional.cam import argmax_labels
from ribseg.functional.dense_crf import dense_crf
from ribseg.functional.pixel_adaptive import pixel_adaptive
from ribseg.functional.segments import vote_segments

Refinement = Literal["none", "crf", "pixel_adaptive", "segments"]


def refined_labels(
    image: np.ndarray,
    maps: Tensor,
    threshold: float,
    refinement: Refinement = "crf",
    segments: Tensor | None = None,
) -> Tensor:
    """The label of each pixel: (H, W) int64, 0 background, k + 1 for map k.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: (K, H, W) normalised; K may be 0.
        threshold: background score, in [0, 1].
        refinement: "none"; "crf", the published dense CRF on the labels; "pixel_adaptive", of the maps before
            their labels; "segments", a vote in each segment.
        segments: of the image, see `vote_segments`; needed for "segments".

    Raises:
        ConfigError: an unknown refinement, a threshold out of range, or no segments.
        ValueError: shapes do not match.

    >>> maps = torch.tensor([[[0.9, 0.1]]])
    >>> refined_labels(np.zeros((1, 2, 3), np.uint8), maps, 0.5, "none")
    tensor([[1, 0]])
    """
    check_choice("refinement", refinement, get_args(Refinement))
    check_number("threshold", threshold, low=0, high=1)
    if refinement == "segments" and segments is None:
        raise ConfigError("refinement='segments' needs the segments of the image: segments=...")
    if refinement == "pixel_adaptive":
        maps = pixel_adaptive(torch.from_numpy(image).permute(2, 0, 1), maps)
    labels = argmax_labels(maps, torch.arange(len(maps), device=maps.device), threshold).cpu()
    if refinement == "crf" and len(maps):
        return torch.from_numpy(dense_crf(image, labels.numpy(), num_labels=len(maps) + 1))
    return vote_segments(labels, segments) if refinement == "segments" and segments is not None else labels
