"""The stages that make localization maps, as `Trainer.predict`: one image a step, processes independent.

Never `fit` with manual optimization: DDP would average gradients of different images and wait for steps that
other processes do not take.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import Tensor, nn

from ribseg.checks import check_number
from ribseg.data.feed.references import Batch
from ribseg.errors import ConfigError
from ribseg.functional.random import rng
from ribseg.methods.cam import cam, merge_maps
from ribseg.methods.controls import feature_norm, relabel, wrong_labels
from ribseg.methods.rib import RIB
from ribseg.types import Adaptation, LocalizationMaps, PredictItem

References = Callable[[str, Tensor, int], Iterator[Batch]]


class Prediction(NamedTuple):
    """What a step leaves.

    Attributes:
        image_id: of the image.
        maps: its normalised localization maps.
        record: plain values for the table: "id", "classes", "steps", "stopped", "seconds".
    """

    image_id: str
    maps: LocalizationMaps
    record: dict[str, Any]


class LocalizationModule(pl.LightningModule):
    """Base of the map stages: `localize` makes the maps of one image, `predict_step` merges them.

    Args:
        classifier: a module with `features(x)` and `weight`.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def localize(self, image_id: str, views: list[Tensor], labels: Tensor) -> Adaptation:
        """Maps of one image; see `ribseg.cam` for views and labels."""
        raise NotImplementedError

    def predict_step(self, item: PredictItem, batch_idx: int) -> Prediction:
        """An item of `WSSSDataModule.predict_dataset` -> its maps and a record."""
        start = time.perf_counter()
        result = self.localize(item.id, item.views, item.labels)
        maps = merge_maps(result.maps, item.size)
        record = {
            "id": item.id,
            "classes": len(result.classes),
            "steps": result.steps,
            "stopped": result.stopped,
            "seconds": round(time.perf_counter() - start, 4),
        }
        return Prediction(item.id, maps, record)


class CAMModule(LocalizationModule):
    """Plain class activation maps."""

    def localize(self, image_id: str, views: list[Tensor], labels: Tensor) -> Adaptation:
        """See `ribseg.cam`."""
        return cam(self.classifier, views, labels)


class FeatureNormModule(LocalizationModule):
    """The norm of the features, with the class of CAM's argmax: a control."""

    def localize(self, image_id: str, views: list[Tensor], labels: Tensor) -> Adaptation:
        """See `ribseg.methods.controls.feature_norm`."""
        return feature_norm(self.classifier, views, labels)


class RIBModule(LocalizationModule):
    """RIB on one image after the other; each starts from the same classifier.

    Args:
        classifier: see `ribseg.RIB`.
        pooling: see `ribseg.RIB`.
        references: (image id, labels, number) -> batches of reference images; None adapts to the image alone.
        kwargs: all other arguments of `ribseg.RIB`.
    """

    def __init__(
        self,
        classifier: nn.Module,
        pooling: Callable[[Tensor, Tensor], Tensor] | None = None,
        references: References | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(classifier)
        self.rib = RIB(classifier, pooling, **kwargs)
        self.references = references

    def localize(self, image_id: str, views: list[Tensor], labels: Tensor) -> Adaptation:
        """See `ribseg.RIB`."""
        references = self.references(image_id, labels, self.rib.updates) if self.references else iter(())
        return self.rib(views, labels, references)


class WrongClassModule(LocalizationModule):
    """A method towards classes that are not in the image, their maps taken for those that are: a control.

    Args:
        method: makes the maps; `RIBModule`, or any other with `localize` and `classifier`.
        seed: the absent classes are a function of seed and image id.

    Raises:
        ConfigError: the method has no `localize`, or the seed is no integer >= 0.
    """

    def __init__(self, method: LocalizationModule, seed: int = 0) -> None:
        if not callable(getattr(method, "localize", None)):
            raise ConfigError(
                f"the control of wrong classes needs a method with localize(image_id, views, labels), as "
                f"ribseg.modules.LocalizationModule has it; {type(method).__name__} has none. Leave "
                "wrong_class and controls out of run=[...]"
            )
        super().__init__(method.classifier)
        check_number("seed", seed, low=0, whole=True)
        self.method, self.seed = method, seed

    def localize(self, image_id: str, views: list[Tensor], labels: Tensor) -> Adaptation:
        """See `ribseg.methods.controls`."""
        wrong = wrong_labels(labels, rng(self.seed, "wrong class", image_id))
        return relabel(self.method.localize(image_id, views, wrong), labels)
