"""Grad-CAM and its relatives, computed by the package `grad-cam` (`pip install 'ribseg[cams]'`)."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ribseg.errors import ConfigError
from ribseg.functional.cam import merge_mirrored
from ribseg.functional.state import evaluating, restored
from ribseg.methods.cam import checked, features_of, head_of, starting_at, without_classes
from ribseg.types import Adaptation, ViewMaps

PACKAGE = "pytorch_grad_cam"


class GradCAM:
    """The maps of a class of the package `grad-cam`, for each view and present class.

    Each map is what the package returns for the view: at the view's size, from 0 to 1. The score that is
    differentiated is the classifier's logit, the mean over the features times the head's weights. With it the
    map of `GradCAM` on the features is the CAM of the view, scaled from 0 to 1.

    Args:
        classifier: any module with `features(x)` and `weight`.
        cam: name of the package's class: GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, HiResCAM, EigenCAM,
            EigenGradCAM, GradCAMElementWise, ScoreCAM (slow: a forward pass per channel), and others.
        layer: dotted name of the module in the classifier whose output, (N, D, h, w), the maps are made of;
            None for the features.

    Raises:
        ConfigError: the package is not installed, or has no such class; there is no such layer.
    """

    def __init__(self, classifier: nn.Module, cam: str = "GradCAM", layer: str | None = None) -> None:
        self.algorithm = package_class(cam)
        self.classifier, self.weight = classifier, head_of(classifier)
        self.scores = Scores(classifier)
        self.layer = self.scores.last if layer is None else named_layer(classifier, layer)

    def __call__(self, *, views: Sequence[Tensor], labels: Tensor) -> Adaptation:
        """The maps of one image; see `ribseg.methods.base.Method`.

        Raises:
            ValueError: wrong shapes of views or labels.
        """
        present, device = checked(views, labels, len(self.weight)), self.weight.device
        if not len(present):
            return without_classes(views)
        with evaluating(self.classifier), restored((), self.classifier), torch.enable_grad():
            maps = [merge_mirrored(self._maps(view.to(device), present.tolist())) for view in views]
        return Adaptation(ViewMaps(maps, present), present, 0, None)

    def _maps(self, view: Tensor, classes: Sequence[int]) -> Tensor:
        """(2, 3, h, w) -> (2, K, h, w) maps in [0, 1]."""
        target = import_module(f"{PACKAGE}.utils.model_targets").ClassifierOutputTarget
        maps = view.new_zeros(len(view), len(classes), *view.shape[2:])
        # The package works with NumPy, which has no bfloat16.
        with torch.autocast(view.device.type, enabled=False), starting_at(self.layer):
            algorithm = self.algorithm(self.scores, [self.layer])
            view = view.float().requires_grad_(self.layer is not self.scores.last)  # through a frozen trunk
            try:
                for place, number in enumerate(classes):
                    found = algorithm(view, [target(number)] * len(view))
                    maps[:, place] = torch.from_numpy(found).to(view)
            finally:
                algorithm.activations_and_grads.release()
        return maps


class Scores(nn.Module):
    """The logits of a classifier from its features and head: (N, 3, H, W) -> (N, C).

    Attributes:
        last: module whose output are the features.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier, self.last = classifier, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Mean over the features, times the head's weights, without bias."""
        features = self.last(features_of(self.classifier)(images).float())
        return features.mean((2, 3)) @ head_of(self.classifier).flatten(1).T


def package_class(name: str) -> Any:
    """The package's class with a name.

    Raises:
        ConfigError: it is not installed, or has no such class; lists those that it has.
    """
    try:
        package = import_module(PACKAGE)
    except ImportError as error:
        raise ConfigError(
            f"cam={name} needs the package grad-cam ({error}): pip install 'ribseg[cams]'"
        ) from error
    base = import_module(f"{PACKAGE}.base_cam").BaseCAM
    classes = {key: value for key, value in vars(package).items() if isinstance(value, type)}
    known = {key: value for key, value in classes.items() if issubclass(value, base) and value is not base}
    if name not in known:
        raise ConfigError(f"cam: expected one of {', '.join(sorted(known))}, got {name!r}")
    return corrected(name, known[name])


def corrected(name: str, algorithm: Any) -> Any:
    """The package's class, or one with what its paper says where the package (1.5.7) differs.

    Grad-CAM++: `alpha = g^2 / (2 g^2 + sum(A) g^3)` is `1 / (2 + sum(A) g)`; the package adds 1e-6 to a
    denominator that is usually smaller, so that it hardly divides. A principal component has no sign: that of
    Eigen-CAM follows the mean activation, that of EigenGradCAM the sum of activation times gradient, so that
    an image and its mirror image have the same.
    """
    if name == "GradCAMPlusPlus":

        class PlusPlus(algorithm):
            def get_cam_weights(self, *given: Any) -> np.ndarray:
                activations, gradients = given[-2:]
                axes = tuple(range(2, activations.ndim))
                divisor = 2 + activations.sum(axes, keepdims=True) * gradients
                share = np.divide(1, divisor, out=np.zeros_like(divisor), where=divisor > 0)
                return (np.maximum(gradients, 0) * share).sum(axes)

        return PlusPlus
    if name in ("EigenCAM", "EigenGradCAM"):

        class Signed(algorithm):
            def get_cam_image(self, *given: Any) -> np.ndarray:
                cam, (activations, gradients) = super().get_cam_image(*given), given[3:5]
                strength = (activations if name == "EigenCAM" else activations * gradients).sum(1)
                centred = strength - strength.mean((1, 2), keepdims=True)
                return cam * np.where((cam * centred).sum((1, 2), keepdims=True) < 0, -1, 1)

        return Signed
    return algorithm


def named_layer(classifier: nn.Module, name: str) -> nn.Module:
    """The module of a classifier with a dotted name; raises a ConfigError if there is none."""
    try:
        return classifier.get_submodule(name)
    except AttributeError as error:
        known = [path for path, _ in classifier.named_modules() if path and path.count(".") < 3]
        raise ConfigError(
            f"layer: the classifier has no {name!r}; among others {', '.join(known[:12])}"
        ) from error
