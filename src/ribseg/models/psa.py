"""PSA's affinity network over a frozen CNN (Ahn, Kwak, CVPR 2018, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribseg.errors import ConfigError
from ribseg.functional.cam import strided_size
from ribseg.models.backbone import Backbone, FrozenBackboneNetwork, pad_images
from ribseg.models.chain import trial_images

STRIDE = 8
WIDTHS = (64, 128, 256)  # channels after the reduction of the three levels


class PSANet(FrozenBackboneNetwork):
    """Features whose distance tells whether two pixels have the same label.

    Three levels of the backbone (in a ResNet layer2, layer3 and layer4) are reduced to 64, 128 and 256
    channels, resized to stride 8 and merged by a 1x1 convolution. The published network trains a ResNet-38
    backbone along; here the backbone is frozen, as in IRNet.

    Args:
        backbone: with its weights; frozen, in evaluation mode.

    Attributes:
        stride: image pixels per feature-map location.

    Raises:
        ConfigError: the backbone has no level at stride 8.

    >>> network = PSANet(Backbone("resnet10t"))
    >>> network(torch.zeros(1, 3, 70, 96)).shape
    torch.Size([1, 448, 9, 12])
    """

    stride = STRIDE

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        trial = trial_images(backbone)
        levels = self.levels(trial)
        if levels[0].shape[-1] * STRIDE != trial.shape[-1]:
            raise ConfigError(
                f"PSANet needs a backbone with features at stride {STRIDE} before its last two stages, "
                f"{backbone.name!r} has {trial.shape[-1] // levels[0].shape[-1]}; use a CNN such as a ResNet"
            )
        self.reduce = nn.ModuleList(
            nn.Conv2d(level.shape[1], width, 1, bias=False)
            for level, width in zip(levels, WIDTHS, strict=True)
        )
        self.mix = nn.Conv2d(sum(WIDTHS), sum(WIDTHS), 1, bias=False)

    @torch.no_grad()
    def levels(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the outputs of the trunk and the last two stages."""
        levels = []
        for stage in self.backbone.stages:
            images = stage(images)
            levels.append(images)
        return levels

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 448, ceil(H/8), ceil(W/8))."""
        levels = self.levels(images)
        reduced = [
            F.interpolate(F.elu(layer(level)), levels[0].shape[-2:], mode="bilinear", align_corners=False)
            for layer, level in zip(self.reduce, levels, strict=True)
        ]
        return self.mix(torch.cat(reduced, 1)).relu()

    @torch.no_grad()
    def predict(self, views: Tensor, crop_size: int = 448) -> Tensor:
        """Features of one image.

        Args:
            views: (1 or 2, 3, H, W), the normalised image first.
            crop_size: images are zero-padded at the right and bottom to this size, larger ones to a multiple
                of 32.

        Returns:
            (448, ceil(H/8), ceil(W/8)).
        """
        rows, columns = strided_size(views.shape[-2:], STRIDE)
        return self(pad_images(views[:1], crop_size))[0, :, :rows, :columns]
