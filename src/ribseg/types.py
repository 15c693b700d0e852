"""Shared data types: samples, maps, results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:  # `ribseg check` starts without torch
    from torch import Tensor

Stop = Literal["margin", "area", "not_finite"]
Preset = Literal["official", "paper", "fixed"]
Trainable = Literal["published", "layer4", "head"]
IGNORE = 255  # label of pixels in a mask that do not count
REGIONS = ("discriminative", "non_discriminative", "irrelevant")  # of the toy experiment's images
PHASES = ("before", "after")  # RIB
STRIDE = 4  # image pixels per location of strided localization maps
Batch: TypeAlias = (
    "tuple[Tensor, Tensor] | tuple[None, None]"  # images (B, 3, S, S) and labels (B, C), if there are any
)


class Sample(NamedTuple):
    """An image with its image-level labels. In a batch `id` is a tuple and the tensors have N rows.

    Attributes:
        id: of the image.
        image: (3, S, S) float32 tensor after the transform, else (H, W, 3) uint8 array.
        labels: (C,) float32 in {0, 1}.
    """

    id: str
    image: Any
    labels: Tensor


class MaskSample(NamedTuple):
    """An image with a label for each pixel. Batched like `Sample`.

    Attributes:
        id: of the image.
        image: (3, S, S) float32 tensor after the transform, else (H, W, 3) uint8 array.
        mask: (S, S) or (H, W) uint8: 0 background, c + 1 class c, 255 ignore.
        counts: whether it counts in validation; see `CountedDataset`.
    """

    id: str
    image: Any
    mask: Any
    counts: bool = True


class PredictItem(NamedTuple):
    """The input for computing an image's localization maps.

    Attributes:
        id: of the image.
        views: one (2, 3, h, w) float32 tensor per scale: the image, and its mirror image.
        labels: (C,) float32 in {0, 1}.
        size: (H, W) of the image in pixels.
    """

    id: str
    views: list[Tensor]
    labels: Tensor
    size: tuple[int, int]


class TrainingImages(NamedTuple):
    """Labelled images that a method learns from before its first image.

    Attributes:
        labels: (N, C) float32 in {0, 1}.
        views: index -> the views of an image, one (2, 3, h, w) float32 tensor per scale of `data.scales`.
    """

    labels: Tensor
    views: Callable[[int], list[Tensor]]


class ViewMaps(list["Tensor"]):
    """Maps of one image, one tensor (K, h', w') per view.

    Args:
        maps: of the views.
        classes: (K,) class indices.
        whole: whether a map covers exactly the image. Otherwise it covers the image and what follows at the
            right and bottom, up to the next multiples of 16 pixels, as features at that stride do.
    """

    def __init__(self, maps: Iterable[Tensor], classes: Tensor, whole: bool = False) -> None:
        super().__init__(maps)
        self.classes, self.whole = classes, whole


class AdaptationStep(NamedTuple):
    """Measurements of RIB at one step k, for the stop rules and for diagnostics.

    Attributes:
        loss: of the previous step, whose update led to theta_k; 0 for k = 0.
        area: the fraction of locations of the first view where a normalised map exceeds the area threshold.
        target_logits: the sum of the target classes' pooled logits over the rows of the image's own views.
        maps_finite: 1.0 if all values of all maps are finite, else 0.0.
        logit: the classifier's logit (global average pooling), mean over the target classes, the image and
            the mirror image of the first view.
    """

    loss: float
    area: float
    target_logits: float
    maps_finite: float
    logit: float


class Adaptation(NamedTuple):
    """Result of RIB, or another method, for one image.

    Attributes:
        maps: one (K, h', w') float32 tensor per view: ReLU'd, mirror image merged in, summed over the steps,
            not normalised. A list that also carries `classes`.
        classes: (K,) int64, indices of the present classes, ascending.
        steps: SGD steps taken.
        stopped: None if all steps were taken, else the rule that ended the adaptation.
        history: for each step k = 0, 1, .., including the one at which a rule ended the adaptation; empty
            for methods without steps.
    """

    maps: ViewMaps
    classes: Tensor
    steps: int
    stopped: Stop | None
    history: tuple[AdaptationStep, ...] = ()
