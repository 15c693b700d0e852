"""Affinity of pixel pairs from features, and its training losses.

Ahn, Kwak: Learning Pixel-level Semantic Affinity with Image-level Supervision, CVPR 2018 (PSA), section 3.2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ribseg.functional.irn import EPS, masked_mean, neighbour_offsets, pair_labels, shifted


class FeatureAffinityLosses(NamedTuple):
    """Scalar losses, each a mean over its kind of pairs; zero without such pairs.

    Attributes:
        background: -log affinity of pairs inside the background.
        foreground: -log affinity of pairs inside one class.
        negative: -log(1 - affinity) of pairs of different labels.
    """

    background: Tensor
    foreground: Tensor
    negative: Tensor

    @property
    def total(self) -> Tensor:
        """The published weighting: all positive pairs have the same weight as all negative pairs."""
        return (self.background + self.foreground) / 4 + self.negative / 2


def feature_affinity(features: Tensor, radius: int) -> Tensor:
    """Affinity of all pairs whose first pixel has all its neighbours inside the image.

    Args:
        features: (N, D, h, w) float.
        radius: in pixels of the map.

    Returns:
        (N, P, h', w') in (0, 1] for the P offsets of `neighbour_offsets`, with h' = h - radius + 1 and
        w' = w - 2 (radius - 1): `exp(-mean over D of |f_i - f_j|)`.

    Raises:
        ValueError: the map is smaller than a neighbourhood.
    """
    first = shifted(features, (0, 0), radius)
    distances = [(shifted(features, o, radius) - first).abs().mean(1) for o in neighbour_offsets(radius)]
    return torch.exp(-torch.stack(distances, 1))


def feature_affinity_losses(
    features: Tensor, labels: Tensor, radius: int = 5, ignore_index: int = 255
) -> FeatureAffinityLosses:
    """The losses of PSA's network.

    Args:
        features: (N, D, h, w) float, at stride 8.
        labels: (N, h, w) integers, 0 = background.
        radius: of the pairs, in pixels of the map; 5 in the paper.
        ignore_index: label of ignored pixels.

    Raises:
        ValueError: shapes do not match, or the maps are smaller than a neighbourhood.
    """
    if features.ndim != 4 or labels.shape != (len(features), *features.shape[2:]):
        raise ValueError(
            "expected features (N, D, h, w) and labels (N, h, w), got "
            f"{tuple(features.shape)} and {tuple(labels.shape)}; bring the labels to the features' stride"
        )
    affinity = feature_affinity(features, radius)
    kinds = pair_labels(labels, radius, ignore_index)
    positive = -torch.log(affinity + EPS)
    return FeatureAffinityLosses(
        masked_mean(positive, kinds.background),
        masked_mean(positive, kinds.foreground),
        masked_mean(-torch.log(1 - affinity + EPS), kinds.negative),
    )
