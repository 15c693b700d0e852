"""Refinement of finished localization maps by a network, in `Trainer.predict`, one image per step."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from ribseg.checks import check_number
from ribseg.data.io.maps import LocalizationMaps
from ribseg.functional.attention import check_attention
from ribseg.functional.cam import resize, strided_size
from ribseg.methods.refine import check_walk, maps_by_attention, walk_maps, walk_maps_by_features
from ribseg.models.attention import attention_layers, patch_attention, patch_side
from ribseg.models.irn import IRNet, IRNPrediction
from ribseg.models.psa import PSANet
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
        maps, views, size = self.read_maps(item.id), item.views[0].to(self.device), item.size
        view_size = (views.shape[-2], views.shape[-1])  # `max_side` may have reduced it
        small = maps
        if view_size != size and len(maps.classes):
            strided = resize(maps.strided, strided_size(view_size))
            small = LocalizationMaps(maps.classes, strided, None, view_size)
        full = self.refined(small, views, view_size)
        full = full if view_size == size else resize(full, size)
        strided = resize(full, strided_size(size))
        record: dict[str, Any] = {"id": item.id, "classes": len(maps.classes), "steps": 0, "stopped": None}
        record["seconds"] = round(time.perf_counter() - start, 4)
        return Prediction(item.id, LocalizationMaps(maps.classes, strided, full, size), record)


class RandomWalkModule(RefiningModule):
    """Refines localization maps by a random walk over affinities that a network predicts, image by image.

    See docs/method.md, section 5.3.

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
        super().__init__(read_maps)
        check_number("crop_size", crop_size, low=1, whole=True)
        check_walk(**kwargs)
        self.network, self.crop_size, self.walk = network, crop_size, kwargs

    def refined(self, maps: LocalizationMaps, views: Tensor, size: tuple[int, int]) -> Tensor:
        """The maps after the walk; see `RefiningModule.refined`."""
        prediction = self.network.predict(views, self.crop_size)
        if isinstance(prediction, IRNPrediction):
            return walk_maps(maps, prediction.boundary, size, **self.walk)
        return walk_maps_by_features(maps, prediction, size, **self.walk)


class AttentionModule(RefiningModule):
    """Refines localization maps by the attention of a transformer to the image, image by image.

    See docs/method.md, section 5.6.

    Args:
        network: a classifier over a ViT, see `ribseg.models.attention.attention_layers`.
        read_maps: image id -> its localization maps.
        blocks: number of last blocks whose attention is averaged.
        kwargs: rounds, power, box_threshold and short_boxes of `ribseg.methods.refine.maps_by_attention`.

    Raises:
        ConfigError: the network has no attention between patches, or fewer blocks; a number is out of range.
        TypeError: an unknown argument.
    """

    def __init__(
        self, network: nn.Module, read_maps: Callable[[str], LocalizationMaps], blocks: int = 8, **kwargs: Any
    ) -> None:
        super().__init__(read_maps)
        check_attention(blocks, **kwargs)
        attention_layers(network, blocks)  # raises a ConfigError
        self.network, self.blocks, self.settings = network, blocks, kwargs

    def refined(self, maps: LocalizationMaps, views: Tensor, size: tuple[int, int]) -> Tensor:
        """The maps after the product with the affinity; see `RefiningModule.refined`."""
        attention = patch_attention(self.network, views[:1], self.blocks)[0]
        return maps_by_attention(maps, attention, size, patch_side(self.network), **self.settings)
