"""The refinement by a transformer's attention in `Trainer.predict` (docs/method.md, section 5.6)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ribseg.data.io.maps import LocalizationMaps
from ribseg.functional.attention import check_attention
from ribseg.methods.refine import maps_by_attention
from ribseg.models.attention import check_blocks, patch_attention, patch_side
from ribseg.modules.refining import RefiningModule


class AttentionModule(RefiningModule):
    """Refines localization maps by the attention of a transformer to the image, image by image.

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
        self,
        network: nn.Module,
        read_maps: Callable[[str], LocalizationMaps],
        blocks: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(read_maps)
        check_attention(blocks, **kwargs)
        check_blocks(network, blocks)
        self.network, self.blocks, self.settings = network, blocks, kwargs

    def refined(self, maps: LocalizationMaps, views: Tensor, size: tuple[int, int]) -> Tensor:
        """The maps after the product with the affinity; see `RefiningModule.refined`."""
        attention = patch_attention(self.network, views[:1], self.blocks)[0]
        return maps_by_attention(maps, attention, size, patch_side(self.network), **self.settings)
