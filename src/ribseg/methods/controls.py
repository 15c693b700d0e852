"""Controls: baselines that test whether a gain of RIB is due to localization of the class.

Where possible they keep CAM's class labels and change only the region. A gain that a wrong class or a center
prior reaches as well is due to the shape of the region, not to the class.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribseg.data.io.maps import LocalizationMaps
from ribseg.functional.state import evaluating
from ribseg.methods.base import bind, takes
from ribseg.methods.cam import checked, features_of, head_of, present_classes, without_classes
from ribseg.types import Adaptation, ViewMaps


def wrong_labels(labels: Tensor, generator: np.random.Generator) -> Tensor:
    """Image-level labels with every present class replaced by an absent one.

    Args:
        labels: (C,) in {0, 1}.
        generator: for drawing the absent classes.

    Returns:
        (C,) in {0, 1}, as many ones as `labels`, or as many as there are absent classes.

    >>> wrong_labels(torch.tensor([1.0, 0.0]), np.random.default_rng(0))
    tensor([0., 1.])
    """
    absent = (labels == 0).nonzero().flatten().cpu().numpy()
    count = min(len(absent), int(labels.sum()))
    chosen = generator.choice(absent, size=count, replace=False)
    wrong = torch.zeros_like(labels)
    wrong[torch.from_numpy(chosen)] = 1
    return wrong


def relabel(adaptation: Adaptation, labels: Tensor) -> Adaptation:
    """Assigns the maps of wrong classes to the present ones, in order; surplus classes get no map.

    Args:
        adaptation: to the classes of `wrong_labels`.
        labels: (C,), the true image-level labels.
    """
    classes = present_classes(labels)[: len(adaptation.classes)]
    return adaptation._replace(maps=ViewMaps(adaptation.maps, classes), classes=classes)


class WrongClass:
    """Control: adapts to classes that are not in the image, and uses their maps for those that are.

    Args:
        classifier: a module with `features(x)` and `weight`.
        method: factory of the method, see `ribseg.methods.base.bind`.

    Attributes:
        updates: of the method, largest number of reference batches; None if unlimited.
        uses_references: whether the method's maps depend on its references.
        targets: (C,) labels and generator -> those of absent classes, to which the method adapts.
    """

    targets = staticmethod(wrong_labels)

    def __init__(self, classifier: nn.Module, method: Callable[..., Any]) -> None:
        self.method = bind(method, classifier)
        self.updates: int | None = getattr(self.method, "updates", None)
        self.uses_references = bool(getattr(self.method, "uses_references", True))

    def __call__(
        self,
        views: Sequence[Tensor],
        labels: Tensor,
        generator: np.random.Generator,
        references: Iterable[Any] = (),
    ) -> Adaptation:
        """Maps of the present classes; see `ribseg.methods.base.Method`."""
        known = {"references": references, "generator": generator}
        given = {name: value for name, value in known.items() if takes(self.method, name)}
        wrong = self.targets(labels, generator)
        return relabel(self.method(views=views, labels=wrong, **given), labels)


@torch.no_grad()
def feature_norm(classifier: nn.Module, views: Sequence[Tensor], labels: Tensor) -> Adaptation:
    """Control: the norm of the features at every location, assigned to CAM's argmax class there.

    Args:
        classifier: as for `ribseg.cam`.
        views: (2, 3, h_s, w_s) tensors.
        labels: (C,) in {0, 1}.

    Returns:
        Maps as from `ribseg.cam`: at each location the norm in the map of the argmax class, zero in others.
    """
    weight, features = head_of(classifier), features_of(classifier)
    present, maps = checked(views, labels, len(weight)), []
    if not len(present):
        return without_classes(views)
    rows = weight.flatten(1)[present.to(weight.device)]
    with evaluating(classifier):
        for view in views:
            encoded = features(view.to(weight.device)).float()
            response = torch.einsum("ndhw,kd->nkhw", encoded, rows)
            maps.append(under_argmax(_merge(encoded.norm(dim=1)), _merge(response)))
    return Adaptation(ViewMaps(maps, present), present, 0, None)


def centre_prior(cam_maps: LocalizationMaps) -> LocalizationMaps:
    """Control: 1 at the image's center, decreasing linearly to 0 at the corners, with CAM's argmax class."""

    def region(maps: Tensor) -> Tensor:
        rows = torch.linspace(-1, 1, maps.shape[1])[:, None] if maps.shape[1] > 1 else torch.zeros(1, 1)
        columns = torch.linspace(-1, 1, maps.shape[2])[None] if maps.shape[2] > 1 else torch.zeros(1, 1)
        return (1 - (rows**2 + columns**2).sqrt() / 2**0.5).to(maps)

    return _with_region(cam_maps, region)


def whole_image(cam_maps: LocalizationMaps) -> LocalizationMaps:
    """Control: 1 everywhere, with CAM's argmax class."""
    return _with_region(cam_maps, lambda maps: maps.new_ones(maps.shape[1:]))


def under_argmax(region: Tensor, scores: Tensor) -> Tensor:
    """(h, w) region and (K, h, w) scores -> (K, h, w): the region, in the map of the argmax class."""
    if scores.shape[0] == 0:
        return scores
    best = F.one_hot(scores.argmax(0), scores.shape[0]).permute(2, 0, 1)
    return best.to(region) * region


def _merge(maps: Tensor) -> Tensor:
    """(2, ..., w) of image and mirror image -> their sum, flipped back, not rectified."""
    return maps[0] + maps[1].flip(-1)


def _with_region(cam_maps: LocalizationMaps, region: Callable[[Tensor], Tensor]) -> LocalizationMaps:
    strided, full = cam_maps.strided, cam_maps.full
    return LocalizationMaps(
        cam_maps.classes,
        under_argmax(region(strided), strided),
        None if full is None else under_argmax(region(full), full),
        cam_maps.size,
    )
