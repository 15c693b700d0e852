"""Labels from localization maps with a saliency map as background cue (docs/method.md, section 5.4)."""

import torch
from torch import Tensor

from ribseg.functional.guards import check_finite_maps
from ribseg.types import IGNORE

EVIDENCE = 1e-3  # lower map values are rounding errors of half precision


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
    if maps.ndim != 3 or saliency.shape != maps.shape[1:] or classes.shape != maps.shape[:1]:
        raise ValueError(
            "expected maps (K, H, W), classes (K,) and saliency (H, W), got "
            f"{tuple(maps.shape)}, {tuple(classes.shape)} and {tuple(saliency.shape)}"
        )
    if not ((saliency >= 0) & (saliency <= 1)).all():
        raise ValueError("expected saliency in [0, 1]; divide 8-bit values by 255")
    check_finite_maps(maps)
    labels = torch.zeros(maps.shape[1:], dtype=torch.int64, device=maps.device)
    if len(maps) == 0:
        return labels
    score, winner = maps.max(0)
    best = classes.to(labels)[winner] + 1
    if len(maps) > 1:
        best[score <= EVIDENCE] = IGNORE
    return torch.where(saliency > threshold, best, labels)
