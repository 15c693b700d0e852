"""What travels between the packages: samples, maps, results."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

Stop = Literal["margin", "area", "not_finite"]
Preset = Literal["official", "paper", "fixed"]
Trainable = Literal["published", "layer4", "head"]
STRIDE = 4  # pixels between the locations of strided localization maps


class Sample(NamedTuple):
    """An image with its image-level labels. Stacked to a batch, `id` is a tuple and the tensors have N rows.

    Attributes:
        id: of the image.
        image: (3, S, S) float32 tensor once transformed, else (H, W, 3) uint8 array.
        labels: (C,) float32 of zeros and ones.
    """

    id: str
    image: Any
    labels: Tensor


class MaskSample(NamedTuple):
    """An image with a label for each pixel. Stacked to a batch as `Sample`.

    Attributes:
        id: of the image.
        image: (3, S, S) float32 tensor once transformed, else (H, W, 3) uint8 array.
        mask: (S, S) or (H, W) uint8: 0 background, c + 1 class c, 255 ignore.
        counts: whether it counts in validation; see `PaddedShard`.
    """

    id: str
    image: Any
    mask: Any
    counts: bool = True


class ImageItem(NamedTuple):
    """An image as it is.

    Attributes:
        id: of the image.
        image: (H, W, 3) uint8.
    """

    id: str
    image: np.ndarray


class PredictItem(NamedTuple):
    """An image for which localization maps are made.

    Attributes:
        id: of the image.
        views: one (2, 3, h, w) float32 tensor per scale: the image, and its mirror image.
        labels: (C,) float32 of zeros and ones.
        size: (H, W) of the image in pixels.
    """

    id: str
    views: list[Tensor]
    labels: Tensor
    size: tuple[int, int]


class ViewMaps(list[Tensor]):
    """Maps of one image, one tensor (K, h', w') per view, and the (K,) class indices they belong to."""

    def __init__(self, maps: Iterable[Tensor], classes: Tensor) -> None:
        super().__init__(maps)
        self.classes = classes


class AdaptationStep(NamedTuple):
    """What RIB measures at one step k: what the stop rules look at, and what shows how far it has come.

    Attributes:
        loss: of the step before, whose update led to theta_k; 0 for k = 0.
        area: the share of locations of the first view where a normalised map exceeds the area threshold.
        target_logits: the sum of the target classes' pooled logits over the rows of the image's own views.
        maps_finite: 1.0 if all values of all maps are finite, else 0.0.
        logit: the classifier's logit (global average pooling), mean over the target classes and the two
            mirror images of the first view.
    """

    loss: float
    area: float
    target_logits: float
    maps_finite: float
    logit: float


class Adaptation(NamedTuple):
    """What RIB leaves of one image.

    Attributes:
        maps: one (K, h', w') float32 tensor per view: ReLU'd, mirror image merged in, summed over the steps,
            not normalised. A list that also carries `classes`.
        classes: (K,) int64, indices of the present classes, ascending.
        steps: SGD steps taken.
        stopped: None if all steps were taken, else which rule ended the adaptation.
        history: for each step k = 0, 1, .., also of the one with which a rule ended the adaptation; empty
            for methods that take no steps.
    """

    maps: ViewMaps
    classes: Tensor
    steps: int
    stopped: Stop | None
    history: tuple[AdaptationStep, ...] = ()
