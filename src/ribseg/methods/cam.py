"""Multi-scale class activation maps, and the merging of views (docs/method.md, section 2.2)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ribseg.data.io.maps import LocalizationMaps
from ribseg.functional.cam import (
    class_maps,
    merge_mirrored,
    normalize,
    resize_and_sum,
    size_within,
    strided_size,
)
from ribseg.functional.state import evaluating
from ribseg.types import STRIDE, Adaptation, ViewMaps

PAD_TO = 16  # full-size maps are computed at the next multiple of the output stride, then cropped


def present_classes(labels: Tensor) -> Tensor:
    """(C,) labels in {0, 1} -> (K,) int64 indices of the present classes, ascending."""
    return labels.detach().cpu().nonzero().flatten()


def without_classes(views: Sequence[Tensor]) -> Adaptation:
    """The result of a method for an image without classes: no maps."""
    classes = torch.zeros(0, dtype=torch.int64)
    return Adaptation(ViewMaps([view.new_zeros(0, 1, 1) for view in views], classes), classes, 0, None)


@torch.no_grad()
def cam(
    classifier: nn.Module, views: Sequence[Tensor], labels: Tensor, weight: Tensor | None = None
) -> Adaptation:
    """Class activation maps of the present classes, without adaptation.

    Args:
        classifier: any module with `features(x)` and `weight` (C, D) or (C, D, 1, 1).
        views: (2, 3, h_s, w_s) tensors: the image at several scales, each with its mirror image second.
        labels: (C,) in {0, 1}.
        weight: in the place of the classifier's own, of the same shape.

    Returns:
        The result type of `ribseg.RIB`, with `steps` 0. The classifier is not changed.

    Raises:
        ValueError: wrong shapes of views or labels.
    """
    head, features = head_of(classifier), features_of(classifier)
    weight = head if weight is None else weight
    present = checked(views, labels, len(weight))
    if not len(present):
        return without_classes(views)
    maps = []
    with evaluating(classifier):
        for view in views:
            class_map = class_maps(features(view.to(weight.device)), weight)  # w_c . f(u)
            maps.append(merge_mirrored(class_map[:, present.to(weight.device)]).float())
    return Adaptation(ViewMaps(maps, present), present, 0, None)


def merge_maps(
    maps: Sequence[Tensor], size: tuple[int, int], classes: Tensor | None = None
) -> LocalizationMaps:
    """Resizes the maps of all views, adds them, and divides each class by its maximum (+ 1e-5).

    Args:
        maps: one (K, h', w') tensor per view, non-negative: `out.maps` of `ribseg.RIB` or `ribseg.cam`, a
            `ribseg.types.ViewMaps`; a plain list covers the next multiples of 16 pixels, too.
        size: (H, W) of the image in pixels.
        classes: (K,) class indices; required only if `maps` is a plain list.

    Returns:
        Maps at stride 4 and at full size, in [0, 1], float32, on the device of `maps`.

    Raises:
        ValueError: no maps, an invalid size, or missing class indices.
    """
    known = getattr(maps, "classes", None) if classes is None else classes
    if len(maps) == 0 or known is None or len(known) != maps[0].shape[0]:
        raise ValueError(
            "expected at least one map and the class index of each of its K channels; pass out.maps of RIB "
            "unchanged, or classes=..."
        )
    height, width = (int(side) for side in size)
    if height < 1 or width < 1:
        raise ValueError(f"expected the image size (H, W) in pixels, got {size}")
    strided = resize_and_sum(maps, strided_size((height, width), STRIDE))
    rows, columns = strided_size((height, width), PAD_TO)
    large = (height, width) if getattr(maps, "whole", False) else (rows * PAD_TO, columns * PAD_TO)
    full = resize_and_sum(maps, large)[:, :height, :width]
    return LocalizationMaps(known, normalize(strided), normalize(full), (height, width))


def step_maps(results: Sequence[Adaptation], size: tuple[int, int], side: int) -> Tensor | None:
    """(S, K, h, w) small maps after each step of a method, normalised, for figures.

    Args:
        results: after step 0, 1, .. of a method's `trace`.
        size: (H, W) of the image in pixels.
        side: the longer of h and w.

    Returns:
        None for a method without steps, or an image without classes.
    """
    if len(results) < 2 or not len(results[0].classes):
        return None
    small = size_within(size, side)
    return torch.stack([normalize(resize_and_sum(result.maps, small)) for result in results])


def label_vector(labels: Tensor | Sequence[int], num_classes: int) -> Tensor:
    """The classes of an image as a vector (C,) of zeros and ones, from such a tensor or from indices.

    Args:
        labels: a tensor (C,); or a list, tuple or set of class indices from 0.
        num_classes: C.

    Raises:
        ValueError: an index is out of range.

    >>> label_vector([2], 3)
    tensor([0., 0., 1.])
    """
    if isinstance(labels, Tensor):
        return labels
    wrong = [c for c in labels if isinstance(c, bool) or not isinstance(c, int) or not 0 <= c < num_classes]
    if wrong:
        raise ValueError(
            f"expected a tensor ({num_classes},) of zeros and ones, or class indices below {num_classes}, "
            f"got {wrong[:5]}"
        )
    vector = torch.zeros(num_classes)
    vector[list(labels)] = 1
    return vector


def checked(
    views: Sequence[Tensor], labels: Tensor, num_classes: int, loss_views: Sequence[int] = ()
) -> Tensor:
    """The (K,) present classes of an image; for none a method returns `without_classes(views)`.

    Raises:
        ValueError: views are not (2, 3, h, w), labels not (C,) in {0, 1}, or there is no such loss view.
    """
    shapes = [tuple(view.shape) for view in views]
    if not shapes or any(len(shape) != 4 or shape[:2] != (2, 3) for shape in shapes):
        raise ValueError(
            "expected a list of (2, 3, h, w) views, the image and its mirror image at each scale, got shapes "
            f"{shapes}; make them with ribseg.data.feed.views.multi_scale_views"
        )
    if loss_views and max(loss_views) >= len(views):
        raise ValueError(f"expected loss_views below {len(views)}, the number of views, got {loss_views}")
    if labels.shape != (num_classes,) or not ((labels == 0) | (labels == 1)).all():
        raise ValueError(
            f"expected labels of shape ({num_classes},) in {{0, 1}}, one per class of the classifier, got "
            f"shape {tuple(labels.shape)} with values {labels.unique().tolist()[:5]}"
        )
    return present_classes(labels)


def head_of(classifier: nn.Module) -> nn.Parameter:
    """The classifier's `weight`, (C, D) or (C, D, 1, 1), on the device for its images.

    Raises:
        TypeError: the module has no `weight` or no `features`.
    """
    weight = getattr(classifier, "weight", None)
    if not isinstance(weight, nn.Parameter) or not callable(getattr(classifier, "features", None)):
        raise TypeError(
            f"{type(classifier).__name__} needs a method features(x) -> (N, D, h, w) and a parameter weight "
            "of shape (C, D) or (C, D, 1, 1), the weights of its last layer without bias"
        )
    return weight


def features_of(classifier: nn.Module) -> Callable[[Tensor], Tensor]:
    """The classifier's `features`: (N, 3, H, W) -> (N, D, h, w)."""
    return cast(Callable[[Tensor], Tensor], classifier.features)


@contextmanager
def starting_at(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Lets gradients begin at the output of a layer; yields a list that takes its outputs."""
    outputs: list[Tensor] = []

    def start(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = layer.register_forward_hook(start)
    try:
        yield outputs
    finally:
        handle.remove()
