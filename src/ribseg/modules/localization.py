"""Localization maps in `Trainer.predict`, one image per step.

Not `fit` with manual optimization: DDP would average gradients of different images, and wait for processes
with fewer steps.
"""

import dataclasses
import time
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import nn

from ribseg.data.io.maps import LocalizationMaps
from ribseg.methods.base import Method
from ribseg.methods.cam import merge_maps, step_maps
from ribseg.methods.one_image import OneImage, References
from ribseg.types import PredictItem


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


class LocalizationModule(OneImage, pl.LightningModule):
    """Computes the localization maps of images with a method, image by image.

    Args:
        classifier: a module with `features(x)` and `weight`; moved to the Trainer's device. None for a method
            that needs none.
        method: see `OneImage`.
        references: see there.
        name: see there.
        seed: see there.
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
        pl.LightningModule.__init__(self)
        OneImage.__init__(self, method, references, name, seed)
        self.classifier, self.steps_side = classifier, steps_side
        network = getattr(method, "network", None)
        self.network = network if isinstance(network, nn.Module) else None

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
