"""The random walk over learned affinities in `Trainer.predict` (docs/method.md, section 5.3)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ribseg.checks import check_number
from ribseg.data.io.maps import LocalizationMaps
from ribseg.methods.refine import check_walk, walk_maps, walk_maps_by_features
from ribseg.models.irn import IRNet, IRNPrediction
from ribseg.models.psa import PSANet
from ribseg.modules.refining import RefiningModule


class RandomWalkModule(RefiningModule):
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
