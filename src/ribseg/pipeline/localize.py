"""`ribseg.localize`: localization maps of single images, without a data set."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ribseg.data.class_names import indices_of
from ribseg.data.feed.views import SCALES, multi_scale_views
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD, as_image, capped
from ribseg.data.io.maps import LocalizationMaps
from ribseg.errors import ConfigError
from ribseg.memory import usable_device
from ribseg.methods.base import Method, takes
from ribseg.methods.cam import head_of, label_vector, merge_maps
from ribseg.methods.one_image import OneImage, References
from ribseg.methods.predicted_classes import predicted_classes
from ribseg.models.imagenet import imagenet_classifier
from ribseg.models.load import load_classifier
from ribseg.models.packages import PACKAGED
from ribseg.pipeline.recipe.build import build
from ribseg.pipeline.recipe.configuration import composed
from ribseg.pipeline.recipe.methods import entries
from ribseg.types import Adaptation

Labels = Sequence[str | int]
DEFAULT = "efficientnet_lite0"
OF_THE_CALL = ("data.", "references", "seed")  # settings that do not belong to a method


def localize(
    image: Any,
    labels: Labels | None = None,
    classifier: nn.Module | str | Path | None = None,
    method: str | Callable[..., Adaptation] = "rib",
    references: str | Path | None = None,
    *,
    top: int = 3,
    overrides: Sequence[str] = (),
    device: str | torch.device | None = None,
) -> LocalizationMaps:
    """The localization maps of one image.

    Args:
        image: a path, a Pillow image, an (H, W, 3) uint8 array, or a (3, H, W) tensor in [0, 1].
        labels: names or indices of the image's classes; None for predicted ones: the most probable of an
            ImageNet head, those with a probability above 0.5 of any other.
        classifier: any module with `features(x)` and `weight`; a file that `ribseg.load` reads; the name of
            an ImageNet classifier, see `ribseg.models.imagenet.imagenet_classifier`. None for the method's
            own, or "efficientnet_lite0" (extra `ribseg[weights]`).
        method: a name in the section `methods` ("rib", "cam", ..), with the settings of `conf/localize.yaml`;
            or an object, such as `ribseg.RIB(classifier, ...)`.
        references: folder of reference images, for a method that takes them; their labels are predicted, and
            images that share a class with `image` are not used.
        top: maximum number of predicted classes, if `labels` is None.
        overrides: of the settings, in Hydra's syntax, e.g. ["rib.steps=10", "data.max_side=800"].
        device: None for a GPU if there is one. A module given as `classifier` is not moved.

    Returns:
        Maps and class names, with the methods `mask(threshold)`, `plot(image)` and `save(path)`.

    Raises:
        ConfigError: a classifier, method, label or setting cannot be used.
        DataError: the image cannot be read.
    """
    return Localizer(classifier, method, references, overrides=overrides, device=device)(image, labels, top)


class Localizer:
    """Localizes one image after the other; the arguments are those of `localize`.

    Attributes:
        classifier: the network.
        names: of its classes; None if unknown.

    >>> import ribseg
    >>> classifier = ribseg.Classifier("resnet10t", 2, classes=["cat", "dog"])
    >>> localizer = Localizer(classifier, "cam")
    >>> localizer(np.zeros((48, 64, 3), np.uint8), ["dog"]).full.shape
    torch.Size([1, 48, 64])
    """

    def __init__(
        self,
        classifier: nn.Module | str | Path | None = None,
        method: str | Callable[..., Adaptation] = "rib",
        references: str | Path | None = None,
        *,
        overrides: Sequence[str] = (),
        device: str | torch.device | None = None,
    ) -> None:
        self.cfg = composed("localize", overrides)
        if not isinstance(method, str) and not all(text.startswith(OF_THE_CALL) for text in overrides):
            raise ConfigError(
                f"the method has its own settings; overrides may be of {', '.join(OF_THE_CALL)}"
            )
        self.name = method if isinstance(method, str) else type(method).__name__
        own = None if isinstance(method, str) else getattr(method, "classifier", None)
        self.classifier = own if classifier is None and own is not None else _network(classifier, device)
        if own is not None and own is not self.classifier:
            raise ConfigError("the method was made for another classifier; leave out classifier=...")
        self.weight = head_of(self.classifier)
        self.mean = getattr(self.classifier, "mean", None) or IMAGENET_MEAN
        self.std = getattr(self.classifier, "std", None) or IMAGENET_STD
        self.names: tuple[str, ...] | None = getattr(self.classifier, "classes", None)
        self.change: Any = None  # modifies finished maps, for a method that takes the maps of another one
        self.method: Any = self._built(method) if isinstance(method, str) else method
        chosen = isinstance(method, str) or any(text.startswith("data.scales=") for text in overrides)
        self.scales = self.cfg.data.scales if chosen else SCALES
        if max(getattr(self.method, "loss_views", ()), default=0) >= len(self.scales):
            raise ConfigError(
                f"rib.loss_views must be places in data.scales={list(self.scales)}; for all: "
                f"rib.loss_views={[*range(len(self.scales))]}"
            )
        if references is not None and not takes(self.method, "references"):
            raise ConfigError(f"the method {self.name!r} takes no references")
        batches = None if references is None else self._batches(references)
        self.of_image = OneImage(self.method, batches, self.name, self.cfg.seed)

    def __call__(
        self, image: Any, labels: Labels | None = None, top: int = 3, name: str | None = None
    ) -> LocalizationMaps:
        """The maps of an image; see `localize`.

        Args:
            image: see there.
            labels: see there.
            top: see there.
            name: of the image, which determines random draws; None for the stem of its path.
        """
        pixels, given = self._prepared(image, labels, top, name)
        return self._finished(self.of_image.localize(*given), pixels)

    def trace(
        self, image: Any, labels: Labels | None = None, top: int = 3, name: str | None = None
    ) -> list[LocalizationMaps]:
        """The maps after each step of an iterative method; the last ones are those of `__call__`.

        Args:
            image: see `localize`.
            labels: see there.
            top: see there.
            name: see `__call__`.

        Raises:
            ConfigError: the method has no `trace`.
        """
        if self.change is not None or not hasattr(self.method, "trace"):
            raise ConfigError(f"the method {self.name!r} takes no steps (it has no `trace`)")
        pixels, given = self._prepared(image, labels, top, name)
        return [self._finished(step, pixels) for step in self.of_image.trace(*given)]

    def find_classes(self, pixels: np.ndarray, top: int = 3) -> list[int]:
        """Indices of the predicted classes of an (H, W, 3) uint8 image, at most `top`."""
        view = self._views(pixels, (1.0,))[0].to(self.weight.device)
        return predicted_classes(self.classifier, view, top)

    def _prepared(
        self, image: Any, labels: Labels | None, top: int, name: str | None
    ) -> tuple[np.ndarray, tuple[str, list[Tensor], Tensor]]:
        """The pixels; and name, views and (C,) labels in {0, 1}, as `OneImage` takes them."""
        pixels = as_image(image)
        if labels is None:
            chosen = self.find_classes(pixels, top)
        else:
            chosen = indices_of(labels, self.names, len(self.weight))
        if name is None:
            name = Path(image).stem if isinstance(image, str | Path) else "image"
        return pixels, (name, self._views(pixels, self.scales), label_vector(chosen, len(self.weight)))

    def _batches(self, folder: str | Path) -> References:
        """Batches of the photographs of a folder, with the classes that the classifier finds in them."""
        # Here, as albumentations takes a second to import.
        from ribseg.data.augment.transforms import train_transform
        from ribseg.data.feed.photographs import LabelledPhotographs
        from ribseg.data.feed.references import ReferenceBatches
        from ribseg.data.feed.sampler import ReferenceSampler

        photographs = LabelledPhotographs(folder, self.find_classes, len(self.weight))
        data = self.cfg.data
        transform = train_transform(data.crop_size, data.resize_long, self.mean, self.std)
        sampler = ReferenceSampler(photographs.ids, photographs.labels, self.cfg.seed)
        return ReferenceBatches(photographs, sampler, transform, self.cfg.references)

    def _views(self, pixels: np.ndarray, scales: Sequence[float]) -> list[Tensor]:
        return multi_scale_views(capped(pixels, self.cfg.data.max_side), scales, self.mean, self.std)

    def _finished(self, result: Adaptation, pixels: np.ndarray) -> LocalizationMaps:
        maps = merge_maps(result.maps, (pixels.shape[0], pixels.shape[1]), result.classes)
        if self.change is not None:
            maps = self.change(maps)
        found = maps.classes.tolist()
        names = tuple(str(index) if self.names is None else self.names[index] for index in found)
        return replace(maps, names=names, num_classes=len(self.weight))

    def _built(self, name: str) -> Method:
        """The method with this name in the configuration."""
        known = entries(self.cfg)
        if name not in known:
            raise ConfigError(f"expected a method out of {', '.join(known)}, got {name!r}")
        entry = known[name]
        if entry.maps_of is not None:
            self.change = build(OmegaConf.create(entry.arguments()))
            entry = known[entry.maps_of]
        if entry.searches_rate:
            raise ConfigError(f"{entry.path}.lr=auto needs training images; give it a number")
        method = entry.build(self.classifier, classes=self.names)
        if hasattr(method, "prepare"):
            raise ConfigError(
                f"{entry.path} learns from training images before its first one: make its maps in a run, "
                f"run=[classifier,{name}]"
            )
        if isinstance(network := getattr(method, "network", None), nn.Module):
            network.to(self.weight.device)
        return method


def _network(classifier: nn.Module | str | Path | None, device: str | torch.device | None) -> nn.Module:
    """The network, given as a module, a file or a name."""
    if isinstance(classifier, nn.Module):
        return classifier
    chosen, place = classifier or DEFAULT, usable_device(device)
    named = str(chosen) in PACKAGED or timm.is_model(str(chosen))
    if named and not Path(chosen).is_file():
        return imagenet_classifier(str(chosen)).to(place)
    return load_classifier(chosen, place)
