"""Labels from localization maps with a saliency map as background cue (docs/method.md, section 5.4)."""

import numpy as np
import torch
from torch import Tensor

from ribseg.checks import check_number
from ribseg.functional.guards import check_finite_maps
from ribseg.types import IGNORE

EVIDENCE = 1e-3  # lower map values are rounding errors of half precision
STRONG = 0.5  # map values from which on a class is looked for in the saliency map


def labels_with_saliency(maps: Tensor, classes: Tensor, saliency: Tensor, threshold: float = 0.5) -> Tensor:
    """The label of each pixel: saliency separates object and background, the maps decide the class.

    Saliency replaces the background score: salient pixels are never background, all others always are. A
    salient pixel is 255 (ignored) where the image has several classes and all their maps are zero (at most
    0.001). An image without classes is all background.

    Args:
        maps: (K, H, W) normalised maps; K may be 0.
        classes: (K,) class indices, 0 = first class.
        saliency: (H, W) in [0, 1].
        threshold: a pixel is salient above it.

    Returns:
        (H, W) int64; 0 = background, c + 1 = class c, 255 = ignored.

    Raises:
        ValueError: shapes do not match, or saliency is out of range.

    >>> maps = torch.tensor([[[0.9, 0.0, 0.9]], [[0.1, 0.0, 0.0]]])
    >>> labels_with_saliency(maps, torch.tensor([4, 6]), torch.tensor([[1.0, 1.0, 0.0]]))
    tensor([[  5, 255,   0]])
    """
    _check(maps, classes, saliency)
    labels = torch.zeros(maps.shape[1:], dtype=torch.int64, device=maps.device)
    if len(maps) == 0:
        return labels
    score, winner = maps.max(0)
    best = classes.to(labels)[winner] + 1
    if len(maps) > 1:
        best[score <= EVIDENCE] = IGNORE
    return torch.where(saliency > threshold, best, labels)


def labels_with_scene_saliency(
    maps: Tensor,
    classes: Tensor,
    saliency: Tensor,
    threshold: float = 0.5,
    overlap: float = 0.2,
    cut: float = 0.4,
) -> Tensor:
    r"""The label of each pixel where saliency decides on some classes of the image alone.

    Saliency $S$ speaks about a class $c$ if it covers a share of the place where its map $M_c$ is strong,

    $$|\{u: M_c(u) > 0.5, S(u) > t\}| \ge o \, |\{u: M_c(u) > 0.5\}|$$

    with the threshold $t$ and the overlap $o$. These classes share the salient pixels, each of which is of
    the one with the highest map; a connected salient region where none of their maps exceeds the cut is not
    theirs. Every other class has the pixels where its map exceeds the cut and the maps of the others. What
    is neither is background; salient pixels that nothing claims are 255 (docs/method.md, section 5.4).

    Args:
        maps: (K, H, W) normalised maps; K may be 0.
        classes: (K,) class indices, 0 = first class.
        saliency: (H, W) in [0, 1].
        threshold: t, a pixel is salient above it, in [0, 1].
        overlap: o, in [0, 1]; 0: saliency speaks about all classes.
        cut: background score of the classes that saliency does not speak about, in [0, 1].

    Returns:
        (H, W) int64; 0 = background, c + 1 = class c, 255 = ignored.

    Raises:
        ValueError: shapes do not match, or values are out of range.

    >>> dog_sofa = torch.tensor([[[0.9, 0.6, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.7, 0.2]]])
    >>> saliency = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]])
    >>> labels_with_scene_saliency(dog_sofa, torch.tensor([4, 6]), saliency)
    tensor([[5, 0, 0, 7, 0]])
    """
    from scipy.ndimage import label, maximum

    _check(maps, classes, saliency)
    check_scenes(overlap, cut)
    labels = torch.zeros(maps.shape[1:], dtype=torch.int64, device=maps.device)
    if len(maps) == 0:
        return labels
    salient, strong = saliency > threshold, maps > STRONG
    shares = (strong & salient).flatten(1).sum(1) / strong.flatten(1).sum(1).clamp(min=1)
    spoken = shares >= overlap
    ids = classes.to(labels) + 1
    if bool((~spoken).any()):
        score, winner = maps[~spoken].max(0)
        labels = torch.where(score > cut, ids[~spoken][winner], labels)
    if bool(spoken.any()):
        score, winner = maps[spoken].max(0)
        regions, number = label(salient.cpu().numpy())
        peaks = maximum(score.cpu().numpy(), regions, np.arange(1, number + 1)) if number else []
        claimed = torch.tensor([False, *(peak > cut for peak in peaks)], device=maps.device)
        labels = torch.where(
            claimed[torch.from_numpy(regions).to(maps.device).long()], ids[spoken][winner], labels
        )
    return labels.masked_fill(salient & (labels == 0), IGNORE)


def check_scenes(overlap: float = 0.2, cut: float = 0.4) -> None:
    """Raises a ConfigError unless the settings of `labels_with_scene_saliency` are in range."""
    check_number("overlap", overlap, 0, 1)
    check_number("cut", cut, 0, 1)


def _check(maps: Tensor, classes: Tensor, saliency: Tensor) -> None:
    if maps.ndim != 3 or saliency.shape != maps.shape[1:] or classes.shape != maps.shape[:1]:
        raise ValueError(
            "expected maps (K, H, W), classes (K,) and saliency (H, W), got "
            f"{tuple(maps.shape)}, {tuple(classes.shape)} and {tuple(saliency.shape)}"
        )
    if not ((saliency >= 0) & (saliency <= 1)).all():
        raise ValueError("expected saliency in [0, 1]; divide 8-bit values by 255")
    check_finite_maps(maps)
