"""Boundaries of masks: how many of their pixels lie near those of the ground truth."""

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 0.0075  # of the diagonal


def boundary_counts(
    prediction: Tensor,
    target: Tensor,
    num_classes: int,
    tolerance: float = TOLERANCE,
    ignore_index: int = 255,
) -> Tensor:
    """Counts the boundary pixels of each class that lie near the boundary of the other mask.

    A boundary pixel of a class has a neighbour above, below, left or right with another label; the edge of
    the image is no boundary. Ignored pixels of the ground truth take the label of the nearest other pixel, so
    that the boundary runs in the middle of VOC's bands of 255; those that are farther from it than the
    distance belong to unlabelled objects, and count in neither mask. Ignored pixels of the prediction are of
    no class.

    Args:
        prediction: (H, W) int, 0 = background, c + 1 = class c, `ignore_index` = no prediction.
        target: (H, W) int, the same.
        num_classes: C, without background.
        tolerance: the distance up to which pixels match, as a share of the diagonal; at least one pixel.
        ignore_index: label of ignored pixels.

    Returns:
        (4, C) int64: predicted boundary pixels near a true one, predicted ones, true ones near a predicted
        one, true ones.

    Raises:
        ValueError: shapes differ.
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise ValueError(
            f"expected masks (H, W) of equal shape, got {tuple(prediction.shape)}, {tuple(target.shape)}"
        )
    counts = torch.zeros(4, num_classes, dtype=torch.int64)
    predicted, true = prediction.cpu().numpy(), target.cpu().numpy()
    distance = max(1.0, tolerance * float(np.hypot(*true.shape)))
    filled, counted = _filled(true, distance, ignore_index)
    for label in np.union1d(np.unique(predicted), np.unique(filled)).tolist():
        if 0 < label <= num_classes:
            edges = [boundary(mask == label) & counted for mask in (predicted, filled)]
            near = [_near(edge, distance) for edge in edges]
            found = (edges[0] & near[1], edges[0], edges[1] & near[0], edges[1])
            counts[:, label - 1] = torch.tensor([int(edge.sum()) for edge in found])
    return counts


def boundary(region: np.ndarray) -> np.ndarray:
    """(H, W) bool region -> (H, W) bool, its pixels with a neighbour outside of it, within the image.

    >>> boundary(np.array([[True, True, True, False]])).tolist()
    [[False, False, True, False]]
    """
    padded = np.pad(region, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inside


def boundary_f(counts: Tensor) -> Tensor:
    """The boundary F-score of each class: the harmonic mean of precision and recall of boundary pixels.

    Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013; here pooled over
    the set, as IoU is, where they average over images.

    Args:
        counts: (..., 4, C) from `boundary_counts`, summed over images.

    Returns:
        (..., C) float64 in [0, 1]; 0 where a class has boundaries in one of the masks only, NaN in neither.
    """
    hit_predicted, predicted, hit_true, true = counts.double().unbind(-2)
    precision, recall = hit_predicted / predicted.clamp(min=1), hit_true / true.clamp(min=1)
    both = (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)
    return (2 * precision * recall / both).where(predicted + true > 0, torch.nan)


def _filled(true: np.ndarray, distance: float, ignore_index: int) -> tuple[np.ndarray, np.ndarray]:
    """The mask with the nearest label at ignored pixels, and (H, W) bool: which pixels count."""
    from scipy.ndimage import distance_transform_edt

    ignored = true == ignore_index
    if not ignored.any():
        return true, ~ignored
    if ignored.all():
        return np.zeros_like(true), ~ignored
    away, nearest = distance_transform_edt(ignored, return_indices=True)
    return true[tuple(nearest)], away <= distance


def _near(edge: np.ndarray, distance: float) -> np.ndarray:
    """(H, W) bool: the pixels within a distance of an edge."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(~edge) <= distance if edge.any() else edge
