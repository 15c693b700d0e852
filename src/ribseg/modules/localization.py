"""Localization maps in `Trainer.predict`, one image per step.

Not `fit` with manual optimization: DDP would average gradients of different images, and wait for processes
with fewer steps.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import Tensor, nn

from ribseg.data.feed.references import Batch
from ribseg.data.io.maps import LocalizationMaps
from ribseg.functional.random import rng
from ribseg.methods.base import Method, takes
from ribseg.methods.cam import merge_maps, step_maps
from ribseg.types import Adaptation, PredictItem

References = Callable[[str, Tensor, int], Iterator[Batch]]
UNLIMITED = 10**9  # number of reference batches for a method without `updates`


class Prediction(NamedTuple):
    """Result of a step.

    Attributes:
        image_id: of the image.
        maps: its normalised localization maps.
        record: JSON values for the table: "id", "classes", "steps", "stopped", "seconds"; and lists over the
            steps "logits" and "areas", see `ribseg.types.AdaptationStep`.
    """

    image_id: str
    maps: LocalizationMaps
    record: dict[str, Any]


class LocalizationModule(pl.LightningModule):
    """Computes the localization maps of images with a method, image by image.

    Args:
        classifier: a module with `features(x)` and `weight`; moved to the Trainer's device. None for a method
            that needs none.
        method: bound to this classifier, see `ribseg.methods.base.Method`.
        references: (image id, labels, number) -> batches of reference images; None: no references.
        name: of the method; its random generators are determined by seed, name and image id.
        seed: of the random generators.
        steps_side: longer side of the small maps after each step, kept for figures where the method has a
            `trace`; 0: none are kept. They come from the same computation, so they cost next to no time.
    """

    def __init__(
        self,
        classifier: nn.Module | None,
        method: Method,
        references: References | None = None,
        name: str = "",
        seed: int = 0,
        steps_side: int = 0,
    ) -> None:
        super().__init__()
        self.steps_side = steps_side
        self.classifier, self.method, self.references = classifier, method, references
        network = getattr(method, "network", None)
        self.network = network if isinstance(network, nn.Module) else None
        self.name, self.seed = name, seed
        self.taken = [name for name in ("references", "generator") if takes(method, name)]
        if not getattr(method, "uses_references", True):
            self.references = None

    def localize(self, image_id: str, views: list[Tensor], labels: Tensor) -> Adaptation:
        """Returns the maps of one image, not normalised; see `ribseg.methods.base.Method`."""
        return self.method(views=views, labels=labels, **self.given(image_id, labels))

    def trace(self, image_id: str, views: list[Tensor], labels: Tensor) -> list[Adaptation]:
        """Returns the results after each step of a method that has a `trace`."""
        trace: Callable[..., list[Adaptation]] = self.method.trace  # type: ignore[attr-defined]
        return trace(views=views, labels=labels, **self.given(image_id, labels))

    def given(self, image_id: str, labels: Tensor) -> dict[str, Any]:
        """Returns what the method takes besides views and labels: references and generator."""
        generator = partial(rng, self.seed, self.name.replace("_", " "), image_id)
        given: dict[str, Any] = {"generator": generator()} if "generator" in self.taken else {}
        if "references" in self.taken and self.references is not None:
            targets = getattr(self.method, "targets", None)
            chosen = labels if targets is None else targets(labels, generator())
            number = getattr(self.method, "updates", None)
            given["references"] = self.references(image_id, chosen, UNLIMITED if number is None else number)
        return given

    def predict_step(self, item: PredictItem, batch_idx: int) -> Prediction:
        """Returns maps and record of an item of `WSSSDataModule.predict_dataset`."""
        start = time.perf_counter()
        traced = self.steps_side > 0 and hasattr(self.method, "trace")
        make = self.trace if traced else lambda *given: [self.localize(*given)]
        *_, result = results = make(item.id, item.views, item.labels)
        steps = step_maps(results, item.size, self.steps_side)
        maps = dataclasses.replace(merge_maps(result.maps, item.size), steps=steps)
        record = {
            "id": item.id,
            "classes": len(result.classes),
            "steps": result.steps,
            "stopped": result.stopped,
            "logits": [round(step.logit, 4) for step in result.history],
            "areas": [round(step.area, 4) for step in result.history],
            "seconds": round(time.perf_counter() - start, 4),
        }
        return Prediction(item.id, maps, record)
