"""Refinement of localization maps: confident labels for IRNet, random walks over affinities, attention."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.checks import check_number, check_switch
from ribseg.data.io.maps import LocalizationMaps
from ribseg.data.io.masks import IGNORE
from ribseg.errors import ConfigError
from ribseg.functional import argmax_labels, dense_crf, feature_random_walk, random_walk
from ribseg.functional.attention import attention_affinity, refine_by_attention
from ribseg.functional.random_walk import check_walk_arguments
from ribseg.metrics.evaluation import full_size
from ribseg.types import STRIDE

SMALLEST = 1e-6  # of a threshold that an exponent is made of
CRF = Callable[..., np.ndarray]


def confident_labels(
    image: np.ndarray,
    maps: LocalizationMaps,
    foreground: float = 0.35,
    background: float = 0.17,
    crf: CRF | None = dense_crf,
) -> np.ndarray:
    """Confident labels from localization maps and CRFs (docs/method.md, section 5.1).

    A pixel has the label of a class that exceeds the high background score, is background if no class exceeds
    the low one, and otherwise ignored. Both label maps are refined by the CRF first.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: of this image; without full-size maps, those at stride 4 are upsampled.
        foreground: background score for the confident foreground, in [0, 1].
        background: background score for the confident background, at most `foreground`.
        crf: a function like `dense_crf`, called with image, labels and `num_labels`; a `functools.partial`
            can set its settings. None disables the CRF.

    Returns:
        (H, W) uint8: 0 background, c + 1 class c, 255 ignored.

    Raises:
        ValueError: the maps are of another size.
        ConfigError: a score is out of range, or `background` exceeds `foreground`.
    """
    full = full_size(maps, (image.shape[0], image.shape[1]))
    check_confidence(foreground, background)
    if len(maps.classes) == 0:
        return np.zeros(image.shape[:2], np.uint8)  # an image without any class is all background
    high, low = (_refined(image, full, score, crf) for score in (foreground, background))
    ids = np.concatenate([[0], maps.classes.numpy() + 1]).astype(np.uint8)
    return np.where(high > 0, ids[high], np.where(low > 0, IGNORE, 0)).astype(np.uint8)


def check_confidence(foreground: float, background: float) -> None:
    """Raises a ConfigError unless 0 <= background <= foreground <= 1."""
    check_number("foreground", foreground, 0, 1)
    check_number("background", background, 0, 1)
    if background > foreground:
        raise ConfigError(f"expected background <= foreground, got {background} and {foreground}")


def _refined(image: np.ndarray, maps: Tensor, score: float, crf: CRF | None) -> np.ndarray:
    """(H, W) labels after the CRF: 0 background and k + 1 for map k, as in the published program."""
    labels = argmax_labels(maps, torch.arange(len(maps)), score).numpy()
    return labels if crf is None else crf(image, labels, num_labels=len(maps) + 1)


def walk_maps(
    maps: LocalizationMaps,
    boundary: Tensor,
    size: tuple[int, int],
    power: float = 1.3,
    radius: int = 5,
    beta: float = 10.0,
    steps: int = 256,
    per_class: bool = False,
) -> Tensor:
    """Localization maps after IRN's random walk, at the image's size (docs/method.md, section 5.3).

    `argmax_labels(walk_maps(...), maps.classes, 0.27)` is the pseudo mask.

    Args:
        maps: of one image.
        boundary: (ceil(H/4), ceil(W/4)) in [0, 1], from `IRNet.predict`; the walk runs on its device.
        size: (H, W) of the image.
        power: exponent of the maps before the walk.
        radius: see `random_walk`.
        beta: see `random_walk`.
        steps: see `random_walk`.
        per_class: divide each map by its own maximum. Published is the maximum over all classes, under which
            classes with low scores or large objects may vanish.

    Returns:
        (K, H, W) float32 in [0, 1] on the CPU.
    """
    check_walk(power, radius, beta, steps, per_class)
    walked = random_walk(maps.strided.to(boundary.device) ** power, boundary, radius, beta, steps)
    return _full_scores(walked, STRIDE, size, per_class)


def walk_maps_by_features(
    maps: LocalizationMaps,
    features: Tensor,
    size: tuple[int, int],
    power: float = 1.0,
    radius: int = 5,
    beta: float = 8.0,
    steps: int = 256,
    per_class: bool = False,
) -> Tensor:
    """Localization maps after PSA's random walk, at the image's size (docs/method.md, section 5.5).

    As `walk_maps`, with affinities from features at stride 8. PSA also propagates a background map; here the
    background is a score, as in IRN.

    Args:
        maps: of one image; those at stride 4 are averaged to stride 8.
        features: (D, ceil(H/8), ceil(W/8)), from `PSANet.predict`; the walk runs on their device.
        size: (H, W) of the image.
        power: exponent of the maps before the walk.
        radius: see `feature_random_walk`.
        beta: see `feature_random_walk`.
        steps: see `feature_random_walk`.
        per_class: see `walk_maps`.

    Returns:
        (K, H, W) float32 in [0, 1] on the CPU.
    """
    check_walk(power, radius, beta, steps, per_class)
    start = maps.strided.to(features.device) ** power
    if len(start):
        start = F.avg_pool2d(start, 2, ceil_mode=True, count_include_pad=False)
    else:
        start = start.new_zeros(0, *features.shape[1:])
    walked = feature_random_walk(start, features, radius, beta, steps)
    return _full_scores(walked, 2 * STRIDE, size, per_class)


def maps_by_attention(
    maps: LocalizationMaps,
    attention: Tensor,
    size: tuple[int, int],
    patch: int,
    rounds: int = 3,
    power: int = 2,
    box_threshold: float = 0.4,
    short_boxes: bool = False,
) -> Tensor:
    """Localization maps after CLIP-ES's refinement, at the image's size (docs/method.md, section 5.6).

    Args:
        maps: of one image; they are averaged over the patches.
        attention: (h * w, h * w) between patches, from `ribseg.models.attention.patch_attention`, with
            h = ceil(H / patch); the maps are refined on its device.
        size: (H, W) of the image.
        patch: side of a patch in pixels.
        rounds: see `ribseg.functional.attention.attention_affinity`.
        power: see there.
        box_threshold: see `ribseg.functional.attention.box_mask`.
        short_boxes: see there.

    Returns:
        (K, H, W) float32 in [0, 1] on the CPU; each map is divided by its own maximum.

    Raises:
        ValueError: the maps are of another size, or the attention of another number of patches.
    """
    if not len(maps.classes):
        return torch.zeros(0, *size)
    full = full_size(maps, size).to(attention)
    means = F.avg_pool2d(full, patch, ceil_mode=True, count_include_pad=False)
    affinity = attention_affinity(attention, rounds, power)
    refined = refine_by_attention(means, affinity, box_threshold, short_boxes)
    return _full_scores(refined, patch, size, per_class=True)


def labels_by_crf(
    image: np.ndarray, maps: Tensor, classes: Tensor, threshold: float, crf: CRF = dense_crf
) -> np.ndarray:
    """Labels by a CRF on the maps themselves, not on labels made of them, as in CLIP-ES.

    The probability of the background is `(1 - max_c map_c) ^ alpha`, which is below the highest map exactly
    where that exceeds the threshold; CLIP-ES's alpha of 1 is the threshold 0.5.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: (K, H, W) in [0, 1].
        classes: (K,) class indices.
        threshold: in [0, 1].
        crf: a function like `dense_crf`, called with image and probabilities.

    Returns:
        (H, W) uint8: 0 background, c + 1 class c.

    Raises:
        SettingError: the threshold is out of range.
    """
    check_number("threshold", threshold, 0, 1)
    share = min(max(threshold, SMALLEST), 1 - SMALLEST)
    background = (1 - maps.amax(0)).clamp(min=0) ** (math.log(share) / math.log(1 - share))
    scores = torch.cat([background[None], maps])
    best = crf(image, scores / scores.sum(0).clamp(min=torch.finfo(scores.dtype).tiny)).argmax(0)
    ids = torch.cat([classes.new_zeros(1), classes + 1])
    return ids[best].numpy().astype(np.uint8)


def check_walk(
    power: float = 1.0, radius: int = 5, beta: float = 10.0, steps: int = 256, per_class: bool = False
) -> None:
    """Raises a ConfigError unless the settings of `walk_maps` are in range."""
    check_number("power", power, low=0)
    check_walk_arguments(radius, beta, steps)
    check_switch("per_class", per_class)


def _full_scores(walked: Tensor, stride: int, size: tuple[int, int], per_class: bool) -> Tensor:
    """(K, h, w) -> (K, H, W), upsampled, cropped and divided by the maximum."""
    if len(walked) == 0:
        return torch.zeros(0, *size)
    large = F.interpolate(walked[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    large = large[:, : size[0], : size[1]].float().cpu()
    peak = large.amax((1, 2), keepdim=True) if per_class else large.max()
    return large / peak.clamp(min=torch.finfo(large.dtype).tiny)
