"""Overlap of boxes."""

import torch
from torch import Tensor


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each pair of boxes, with both corners inside the box.

    As in the program of Choe et al. (CVPR 2020), where a box from 0 to 9 is ten pixels wide.

    Args:
        boxes: (N, 4) int, x0, y0, x1, y1 with x0 <= x1 and y0 <= y1.
        others: (M, 4) int, the same.

    Returns:
        (N, M) float64 in [0, 1].

    Raises:
        ValueError: another shape, or a corner is on the wrong side.

    >>> box_iou(torch.tensor([[0, 0, 9, 9]]), torch.tensor([[0, 0, 9, 4], [20, 0, 29, 9]]))
    tensor([[0.5000, 0.0000]], dtype=torch.float64)
    """
    for each in (boxes, others):
        if each.ndim != 2 or each.shape[1] != 4 or (each[:, :2] > each[:, 2:]).any():
            raise ValueError(
                "expected boxes (N, 4) as x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, got "
                f"{tuple(each.shape)} with {each[:2].tolist()}"
            )
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low + 1).clamp(min=0).prod(-1).double()
    areas = [(each[:, 2:] - each[:, :2] + 1).prod(-1).double() for each in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)
