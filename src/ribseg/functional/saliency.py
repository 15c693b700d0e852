"""Labels from maps when a saliency map supplies the background (docs/method.md, section 5.4)."""

import torch
from torch import Tensor

IGNORE = 255
EVIDENCE = 1e-3  # maps at or below are zero in half precision's last digit: they speak for no class


def labels_with_saliency(maps: Tensor, classes: Tensor, saliency: Tensor, threshold: float = 0.5) -> Tensor:
    """The label of each pixel: saliency says where there is an object, the maps say of which class.

    Saliency takes the place of the background score altogether. So a salient pixel is never background, even
    where every map is low, and a pixel that is not salient always is, even where a map is high. Where the
    maps of several classes are all zero (at most 0.001), nothing tells the class, and the salient pixel is
    255, to be ignored; with a single class there is no doubt. An image without any class is all background.

    Args:
        maps: (K, H, W) normalised maps; K may be 0.
        classes: (K,) class indices, 0 = first class.
        saliency: (H, W) in [0, 1].
        threshold: a pixel is salient above it.

    Returns:
        (H, W) int64; 0 = background, c + 1 = class c, 255 = not known.

    Raises:
        ValueError: shapes or ranges do not fit.

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
    labels = torch.zeros(maps.shape[1:], dtype=torch.int64, device=maps.device)
    if len(maps) == 0:
        return labels
    score, winner = maps.max(0)
    best = classes.to(labels)[winner] + 1
    if len(maps) > 1:
        best[score <= EVIDENCE] = IGNORE
    return torch.where(saliency > threshold, best, labels)
