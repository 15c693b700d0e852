"""Tries a network or a method of the user's on small images before a run."""

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from ribseg.errors import ConfigError, reason
from ribseg.functional.cam import class_maps
from ribseg.functional.state import evaluating
from ribseg.methods.base import Method
from ribseg.methods.cam import features_of, head_of
from ribseg.methods.one_image import OneImage
from ribseg.methods.partition import partition
from ribseg.types import Adaptation, Trainable

SIZES = ((64, 64), (97, 81))  # height and width; photographs have sizes like the second
BATCH = 2  # image and mirror image, as in every view
CONTRACT = (
    "expected features(x) from images (N, 3, H, W) of any size to (N, D, h, w), and weight (C, D) or "
    "(C, D, 1, 1); see ribseg.RIB"
)


def check_network(
    classifier: nn.Module, num_classes: int, trains: bool = False, trainable: Trainable | None = None
) -> None:
    """Raises a ConfigError unless a network works on images of 64x64 and 97x81 pixels; does not change it.

    Args:
        classifier: any module with `features(x)` and `weight`.
        num_classes: C of the data, without background.
        trains: whether it will be trained, which also requires logits `forward(x)` (N, C), `num_classes` and
            `parameter_groups()`.
        trainable: the part that RIB will adapt; None without RIB.

    Raises:
        ConfigError: the network does not have the required interface.
    """
    name = type(classifier).__name__
    try:
        weight, _ = head_of(classifier), features_of(classifier)
        learning = [*partition(classifier, trainable).parameters, weight] if trainable else []
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the network cannot be a classifier: {reason(error)}") from error
    _check_weight(name, weight, num_classes)
    if trainable not in (None, "head") and len(learning) == 1:
        raise ConfigError(
            f"{name} has no trainable weights besides its head, so rib.trainable={trainable} would adapt "
            "only the head; set requires_grad=True for some of them, or rib.trainable=head"
        )
    generator = torch.Generator().manual_seed(0)  # must not change the global random state
    for size in SIZES:
        images = torch.randn(BATCH, 3, *size, generator=generator).to(weight.device, weight.dtype)
        with evaluating(classifier), torch.set_grad_enabled(bool(learning)):
            features = _output(name, "features", features_of(classifier), images)
            if problem := _problem(features, weight):
                raise ConfigError(
                    f"{name}.features gives {_described(features)} for images {tuple(images.shape)}: "
                    f"{problem}. {CONTRACT}"
                )
            if learning:
                _check_gradients(name, features, weight, learning)
        learning = []  # one backward pass is enough
    if trains:
        _check_training(classifier, name, num_classes)


def check_method(method: Method, classifier: nn.Module | None, num_classes: int, views: int) -> None:
    """Raises a ConfigError unless a method makes maps of a small image; does not change the classifier.

    A method that learns from training images first (`prepare`) is not tried.

    Args:
        method: bound to the classifier.
        classifier: which it must not change; None for a method without.
        num_classes: C.
        views: number of scales of an image.

    Raises:
        ConfigError: it fails, gives no `ribseg.types.Adaptation`, or changes the classifier.
    """
    if hasattr(method, "prepare"):
        return
    height, width = SIZES[1]
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.randn(BATCH, 3, height // place, width // place, generator=generator)
        for place in range(1, views + 1)
    ]
    labels = torch.zeros(num_classes)
    labels[: max(1, min(2, num_classes - 1))] = 1  # a class is absent, as controls need one
    before = {} if classifier is None else {k: v.clone() for k, v in classifier.state_dict().items()}
    one = OneImage(method, lambda _, __, number: repeat((None, None), number), "trial")
    expected = (
        "expected a ribseg.types.Adaptation: one (K, h, w) map of each view, finite and not negative, K the "
        "classes that are present"
    )
    try:
        result = one.localize("trial", given, labels)
    except Exception as error:
        raise ConfigError(
            f"the method fails for an image of {height}x{width} pixels: {type(error).__name__}: "
            f"{reason(error)}; {expected}"
        ) from error
    present = labels.nonzero().flatten()
    if problem := _wrong_maps(result, present.tolist(), views):
        raise ConfigError(f"the method gives {problem}; {expected}")
    after = {} if classifier is None else classifier.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    if changed:
        raise ConfigError(
            f"the method changes the classifier ({changed[0]}), which others use after it: work on a copy, "
            "or give the weights back (ribseg.functional.state.restored)"
        )


def _wrong_maps(result: Any, present: list[int], views: int) -> str:
    """What is wrong with the result of a method; empty for a valid one."""
    if not isinstance(result, Adaptation):
        return type(result).__name__
    if result.classes.tolist() != present:
        return f"classes {result.classes.tolist()} for an image of {present}"
    if len(result.maps) != views:
        return f"{len(result.maps)} maps of {views} views"
    for one in result.maps:
        if not isinstance(one, Tensor) or one.ndim != 3 or len(one) != len(present) or 0 in one.shape:
            return f"a map of {_described(one)}"
        if not bool(torch.isfinite(one).all()) or bool((one < 0).any()):
            return "maps with values that are negative or not finite"
    return ""


def _check_weight(name: str, weight: Tensor, num_classes: int) -> None:
    if weight.ndim not in (2, 4) or weight.shape[2:].numel() != 1 or len(weight) != num_classes:
        raise ConfigError(
            f"expected {name}.weight of shape (C, D) or (C, D, 1, 1) with a row for each of the "
            f"{num_classes} classes of the data (background has none), got {tuple(weight.shape)}"
        )
    if not bool(torch.isfinite(weight).all()):
        raise ConfigError(f"{name}.weight is not finite; were its weights loaded?")


def _check_training(classifier: Any, name: str, num_classes: int) -> None:
    """Checks the additional interface for `ribseg.modules.ClassifierModule`."""
    absent = [part for part in ("num_classes", "parameter_groups") if not hasattr(classifier, part)]
    if absent:
        raise ConfigError(
            f"{name} has no {' and no '.join(absent)}: the training of the classifier needs num_classes, "
            "parameter_groups() -> (parameters of the backbone, of the head), and logits forward(x) of shape "
            "(N, C). Or load a trained classifier: classifier.checkpoint=FILE"
        )
    weight = head_of(classifier)
    images = torch.zeros(BATCH, 3, *SIZES[0], device=weight.device, dtype=weight.dtype)
    with evaluating(classifier), torch.no_grad():
        logits = _output(name, "forward", classifier, images)
    if not isinstance(logits, Tensor) or logits.shape != (BATCH, num_classes):
        raise ConfigError(
            f"expected logits (N, C) = ({BATCH}, {num_classes}) from {name}, got {_described(logits)}"
        )


def _problem(features: Any, weight: Tensor) -> str:
    """What is wrong with features; empty for valid ones."""
    if not isinstance(features, Tensor):
        return "that is not a tensor"
    channels = weight.shape[1]
    if features.ndim == 3 and features.shape[-1] == channels:
        return "those are tokens (N, L, D) of a transformer, not a map; reshape them to (N, D, h, w)"
    if features.ndim != 4:
        return f"that has {features.ndim} dimensions, not 4; return features before pooling and head"
    if features.shape[1] != channels and features.shape[-1] == channels:
        return "the channels are last (NHWC); convert them with .permute(0, 3, 1, 2)"
    if features.shape[1] != channels:
        return f"{features.shape[1]} channels do not fit weight, which has {channels} columns"
    if len(features) != BATCH or 0 in features.shape:
        return f"there must be a map for each of the {BATCH} images"
    if features.device != weight.device:
        return f"they are on {features.device}, but weight is on {weight.device}"
    if not features.is_floating_point() or not bool(torch.isfinite(features).all()):
        return "they are not finite numbers; were the network's weights loaded?"
    return ""


def _check_gradients(name: str, features: Tensor, weight: Tensor, learning: Sequence[nn.Parameter]) -> None:
    """Checks that a loss on the class maps has gradients for the adapted weights."""
    wanted = [parameter for parameter in learning if parameter.requires_grad]
    try:
        maps = class_maps(features, weight)
        found = torch.autograd.grad(maps.square().mean(), wanted, allow_unused=True)
    except RuntimeError as error:
        raise ConfigError(
            f"the gradient of {name}'s class maps, which RIB needs, cannot be computed: {reason(error)}"
        ) from error
    body = [g for p, g in zip(wanted, found, strict=True) if p is not weight]
    if body and all(gradient is None for gradient in body):
        raise ConfigError(
            f"{name}.features is detached from its weights: the class maps have no gradient for any of the "
            f"{len(body)} that RIB adapts. Remove .detach(), torch.no_grad or numpy from features, or adapt "
            "only the head with rib.trainable=head"
        )
    if any(g is not None and not bool(torch.isfinite(g).all()) for g in found):
        raise ConfigError(f"gradients of {name}'s class maps are not finite; RIB could not take a step")


def _output(name: str, method: str, function: Callable[[Tensor], Any], images: Tensor) -> Any:
    """What a network's method returns for images; a ConfigError names what it raised."""
    try:
        return function(images)
    except Exception as error:
        raise ConfigError(
            f"{name}.{method} fails for images {tuple(images.shape)}, {images.dtype} on {images.device}: "
            f"{type(error).__name__}: {reason(error)}. {CONTRACT}"
        ) from error


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
