"""Refinement of finished localization maps by a network, in `Trainer.predict`, one image per step."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import pytorch_lightning as pl
from torch import Tensor

from ribseg.data.io.maps import LocalizationMaps
from ribseg.functional.cam import resize, strided_size
from ribseg.modules.localization import Prediction
from ribseg.types import PredictItem


class RefiningModule(pl.LightningModule, ABC):
    """Refines localization maps by what a network sees in the image.

    Args:
        read_maps: image id -> its localization maps.
    """

    def __init__(self, read_maps: Callable[[str], LocalizationMaps]) -> None:
        super().__init__()
        self.read_maps = read_maps

    @abstractmethod
    def refined(self, maps: LocalizationMaps, views: Tensor, size: tuple[int, int]) -> Tensor:
        """(K, H, W) float32 in [0, 1] on the CPU.

        Args:
            maps: of the image, at the size of the view; `full` may be None.
            views: (2, 3, H, W), the normalised image and its mirror image.
            size: (H, W).
        """

    def predict_step(self, item: PredictItem, batch_idx: int) -> Prediction:
        """Returns the refined maps of an item of `predict_dataset`, whose first view must have scale 1."""
        start = time.perf_counter()
        maps, size = self.read_maps(item.id), item.size
        full = self._refined(maps, item.views[0].to(self.device), size)
        strided = resize(full, strided_size(size))
        record = {
            "id": item.id,
            "classes": len(maps.classes),
            "steps": 0,
            "stopped": None,
            "seconds": round(time.perf_counter() - start, 4),
        }
        return Prediction(item.id, LocalizationMaps(maps.classes, strided, full, size), record)

    def _refined(self, maps: LocalizationMaps, views: Tensor, size: tuple[int, int]) -> Tensor:
        """Refines the maps at the size of the view, which `max_side` may have reduced."""
        view_size = (views.shape[-2], views.shape[-1])
        if view_size != size and len(maps.classes):
            maps = LocalizationMaps(
                maps.classes, resize(maps.strided, strided_size(view_size)), None, view_size
            )
        found = self.refined(maps, views, view_size)
        return found if view_size == size else resize(found, size)
