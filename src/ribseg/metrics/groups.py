"""Scores in groups of images: by the size of their objects, and by their number of classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from ribseg.functional.evaluation import scores_from_counts
from ribseg.metrics.confusion import check_target, label_counts

MANY = 3  # images with this many classes or more form one group
# Limits of the groups by object size: share of an image's scored pixels that belong to a class.
SIZES = {"small": (0.0, 0.1), "medium": (0.1, 0.3), "large": (0.3, 1.0)}
NONE = -1  # the group of images that are in none


class GroupedScores(Metric):
    """The mIoU of masks in groups of images: by object size, and by the number of classes in an image.

    Small objects are those that all together cover up to a tenth of an image's scored pixels, medium ones
    cover up to three tenths. How far scores depend on it: Mun et al., Small Objects Matters in
    Weakly-supervised Semantic Segmentation, arXiv 2309.14117, who group objects; semantic masks tell none
    apart.

    Args:
        num_classes: C, without background.
        ignore_index: target label of ignored pixels.

    >>> metric = GroupedScores(num_classes=1)
    >>> metric.update(torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 1, 0, 0]]), number=1)
    >>> metric.compute()["by_object_size"]
    [{'size': 'medium', 'above': 0.1, 'up_to': 0.3, 'images': 1, 'miou': 0.5833333333333333}]
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    sizes: Tensor
    size_images: Tensor
    numbers: Tensor
    number_images: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        for name, groups in (("size", len(SIZES)), ("number", MANY)):
            counts = torch.zeros(groups, 3, num_classes + 1, dtype=torch.int64)
            self.add_state(f"{name}s", counts, dist_reduce_fx="sum")
            self.add_state(f"{name}_images", torch.zeros(groups, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, number: int) -> None:
        """Adds one image.

        Args:
            prediction: (H, W) int, see `label_counts`.
            target: (H, W) int, the same.
            number: of its image-level labels; images without any are in no group by number.

        Raises:
            ValueError: a label is out of range.
        """
        for mask in (prediction, target):
            check_target(mask, self.num_classes, self.ignore_index)
        counts = label_counts(prediction, target, self.num_classes, self.ignore_index)
        for name, group in (
            ("size", size_groups(counts[None])[0]),
            ("number", number_groups([number])[0]),
        ):
            if group != NONE:
                getattr(self, f"{name}s")[group] += counts.to(self.sizes.device)
                getattr(self, f"{name}_images")[group] += 1

    def compute(self) -> dict[str, list[dict[str, Any]]]:
        """The rows "by_object_size" and "by_number_of_classes", as the functions of these names give them."""
        return {
            "by_object_size": _size_rows(self.sizes, self.size_images),
            "by_number_of_classes": _number_rows(self.numbers, self.number_images),
        }


def by_object_size(counts: Tensor) -> list[dict[str, Any]]:
    """Number of images and mIoU, by the share of an image that objects cover.

    The groups are those of `SIZES`; images whose masks have no object are in none.

    Args:
        counts: (N, 3, C+1) `label_counts` of the images.
    """
    return _size_rows(*_summed(counts, size_groups(counts), len(SIZES)))


def by_number_of_classes(counts: Tensor, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Number of images and mIoU for images with 1, 2, and 3 or more classes.

    The mIoU is None if the masks of a group have no foreground pixels.

    Args:
        counts: (N, 3, C+1) `label_counts` of the images.
        numbers: N numbers of image-level labels; images without any are in no group.
    """
    return _number_rows(*_summed(counts, number_groups(numbers), MANY))


def size_groups(counts: Tensor) -> np.ndarray:
    """(N, 3, C+1) counts -> (N,) int64 place in `SIZES` of each image; -1 for images without objects."""
    true = counts[:, 2].double().cpu().numpy()
    share = 1 - true[:, 0] / true.sum(1).clip(min=1)
    share[true.sum(1) == 0] = 0
    limits = [high for _, high in SIZES.values()]
    return np.where(share > 0, np.searchsorted(limits[:-1], share, side="left"), NONE)


def number_groups(numbers: Sequence[int]) -> np.ndarray:
    """N numbers of labels -> (N,) int64 group of each image: 0 for one label to `MANY` - 1; -1 for none."""
    return np.minimum(np.asarray(numbers, np.int64), MANY) - 1


def _summed(counts: Tensor, groups: np.ndarray, number: int) -> tuple[Tensor, Tensor]:
    """(G, 3, C+1) counts and (G,) images of each group."""
    chosen = [torch.from_numpy(groups == group) for group in range(number)]
    totals = torch.stack([counts[each].sum(0) for each in chosen])
    return totals, torch.tensor([int(each.sum()) for each in chosen])


def _size_rows(totals: Tensor, images: Tensor) -> list[dict[str, Any]]:
    names = [{"size": name, "above": low, "up_to": high} for name, (low, high) in SIZES.items()]
    return _rows(names, totals, images)


def _number_rows(totals: Tensor, images: Tensor) -> list[dict[str, Any]]:
    names = [{"classes": str(number)} for number in range(1, MANY)] + [{"classes": f"{MANY} or more"}]
    return _rows(names, totals, images)


def _rows(names: Sequence[dict[str, Any]], totals: Tensor, images: Tensor) -> list[dict[str, Any]]:
    """A row for each group that has images; its mIoU is None if its masks have no foreground pixels."""
    miou = scores_from_counts(*totals.double().unbind(1)).miou.tolist()
    rows = zip(names, images.tolist(), miou, strict=True)
    return [
        name | {"images": number, "miou": None if np.isnan(score) else score}
        for name, number, score in rows
        if number
    ]
