"""The random walk over learned affinities in `Trainer.predict` (docs/method.md, section 5.3)."""

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ribseg.checks import check_number
from ribseg.data.io.maps import LocalizationMaps
from ribseg.functional.cam import resize, strided_size
from ribseg.methods.refine import check_walk, walk_maps, walk_maps_by_features
from ribseg.models.irn import IRNet, IRNPrediction
from ribseg.models.psa import PSANet
from ribseg.modules.localization import Prediction
from ribseg.types import PredictItem


class RandomWalkModule(pl.LightningModule):
    """Refines localization maps by a random walk over affinities that a network predicts, image by image.

    Args:
        network: IRNet or PSA's network.
        read_maps: image id -> its localization maps.
        crop_size: of the network's training, see `IRNet.predict`.
        kwargs: power, radius, beta, steps and per_class of `ribseg.methods.refine.walk_maps`, or of
            `walk_maps_by_features`.

    Raises:
        ConfigError: a number is out of range.
        TypeError: an unknown argument.
    """

    def __init__(
        self,
        network: IRNet | PSANet,
        read_maps: Callable[[str], LocalizationMaps],
        crop_size: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_number("crop_size", crop_size, low=1, whole=True)
        check_walk(**kwargs)
        self.network, self.read_maps = network, read_maps
        self.crop_size, self.walk = crop_size, kwargs

    def predict_step(self, item: PredictItem, batch_idx: int) -> Prediction:
        """Returns the refined maps of an item of `predict_dataset`, whose first view must have scale 1."""
        start = time.perf_counter()
        maps, size = self.read_maps(item.id), item.size
        full = self._walk(maps, item.views[0].to(self.device), size)
        strided = resize(full, strided_size(size))
        record = {
            "id": item.id,
            "classes": len(maps.classes),
            "steps": 0,
            "stopped": None,
            "seconds": round(time.perf_counter() - start, 4),
        }
        return Prediction(item.id, LocalizationMaps(maps.classes, strided, full, size), record)

    def _walk(self, maps: LocalizationMaps, views: Tensor, size: tuple[int, int]) -> Tensor:
        """Refines the maps at the size of the view, which `max_side` may have reduced."""
        view_size = (views.shape[-2], views.shape[-1])
        if view_size != size and len(maps.classes):
            maps = LocalizationMaps(
                maps.classes, resize(maps.strided, strided_size(view_size)), None, view_size
            )
        prediction = self.network.predict(views, self.crop_size)
        if isinstance(prediction, IRNPrediction):
            walked = walk_maps(maps, prediction.boundary, view_size, **self.walk)
        else:
            walked = walk_maps_by_features(maps, prediction, view_size, **self.walk)
        return walked if view_size == size else resize(walked, size)
