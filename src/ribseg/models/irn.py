"""IRNet: class boundaries and displacements over a frozen CNN (Ahn, Cho, Kwak, CVPR 2019, section 4.2)."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribseg.errors import ConfigError
from ribseg.functional.cam import strided_size
from ribseg.models.backbone import Backbone, FrozenBackboneNetwork, pad_images
from ribseg.models.chain import trial_images
from ribseg.types import STRIDE

BOUNDARY_WIDTH, BOUNDARY_GROUPS = 32, 4
DISPLACEMENT_WIDTHS, DISPLACEMENT_GROUPS = (64, 128, 256, 256, 256), (8, 16, 16, 16, 16)
MERGED_WIDTH, MERGED_GROUPS = 256, 16


class IRNOutput(NamedTuple):
    """Outputs at stride 4.

    Attributes:
        boundary: (N, h, w) logits of a class boundary.
        displacement: (N, 2, h, w), (dy, dx) to the center of the object, in pixels of the map, without
            subtraction of the training mean.
    """

    boundary: Tensor
    displacement: Tensor


class IRNPrediction(NamedTuple):
    """Prediction for one image of H x W pixels, at stride 4.

    Attributes:
        boundary: (ceil(H/4), ceil(W/4)) in [0, 1], averaged over image and mirror image.
        displacement: (2, ceil(H/4), ceil(W/4)) in pixels of the map, with the training mean subtracted.
    """

    boundary: Tensor
    displacement: Tensor


class IRNet(FrozenBackboneNetwork):
    """Two branches over the five feature levels of a frozen backbone.

    As in the paper for ResNet-50, the levels are the stem and the last blocks at strides 4, 8, 16 and 16. A
    trial forward pass finds them in any CNN with features at stride 4.

    Args:
        backbone: with its weights; frozen, in evaluation mode.

    Attributes:
        stride: image pixels per location of the outputs.
        displacement_mean: (2,) buffer, measured at the end of training and subtracted by `predict`.

    Raises:
        ConfigError: the backbone has no levels at stride 4 and 8.

    >>> network = IRNet(Backbone("resnet10t"))
    >>> output = network(torch.zeros(1, 3, 70, 96))
    >>> output.boundary.shape, output.displacement.shape
    (torch.Size([1, 18, 24]), torch.Size([1, 2, 18, 24]))
    """

    stride = STRIDE
    displacement_mean: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self._cuts = _find_levels(backbone)
        channels = [level.shape[1] for level in self.features(trial_images(backbone))]
        self.boundary = BoundaryBranch(channels)
        self.displacement = DisplacementBranch(channels)
        self.register_buffer("displacement_mean", torch.zeros(2))

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the five levels, (N, D_l, h_l, w_l) each; without gradients."""
        levels = []
        blocks = chain.from_iterable(stage.children() for stage in self.backbone.stages)
        for number, block in enumerate(blocks, start=1):
            images = block(images)
            if number in self._cuts:
                levels.append(images)
        return levels

    def forward(self, images: Tensor) -> IRNOutput:
        """(N, 3, H, W) normalised images -> logits and raw displacements at stride 4."""
        levels = self.features(images)
        return IRNOutput(self.boundary(levels), self.displacement(levels))

    @torch.no_grad()
    def predict(self, views: Tensor, crop_size: int = 512) -> IRNPrediction:
        """Boundary and displacement of one image.

        Args:
            views: (2, 3, H, W), the normalised image and its mirror image.
            crop_size: images are zero-padded at the right and bottom to this size, the one in training
                (GroupNorm depends on it); larger ones to a multiple of 32.
        """
        if views.ndim != 4 or views.shape[:2] != (2, 3):
            raise ValueError(f"expected (2, 3, H, W), image and mirror image, got {tuple(views.shape)}")
        rows, columns = strided_size(views.shape[-2:], STRIDE)
        output = self(pad_images(views, crop_size))
        logits = output.boundary[:, :rows, :columns]
        boundary = ((logits[0] + logits[1].flip(-1)) / 2).sigmoid()
        displacement = output.displacement[0, :, :rows, :columns]
        return IRNPrediction(boundary, displacement - self.displacement_mean[:, None, None])


class BoundaryBranch(nn.Module):
    """Reduces all levels to 32 channels at stride 4; a 1x1 convolution gives the boundary logits."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_reduction(c, BOUNDARY_WIDTH, BOUNDARY_GROUPS) for c in channels)
        self.final = nn.Conv2d(BOUNDARY_WIDTH * len(channels), 1, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Five levels -> (N, h, w) logits at the size of the second level."""
        size = levels[1].shape[-2:]
        reduced = [_fit(layer(x), size).relu() for layer, x in zip(self.levels, levels, strict=True)]
        return self.final(torch.cat(reduced, 1))[:, 0]


class DisplacementBranch(nn.Module):
    """Merges the three deepest levels at stride 8, then all at stride 4; two 1x1 convolutions follow."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        widths = DISPLACEMENT_WIDTHS
        self.levels = nn.ModuleList(map(_reduction, channels, widths, DISPLACEMENT_GROUPS))
        self.deep = _reduction(sum(widths[2:]), MERGED_WIDTH, MERGED_GROUPS)
        self.merge = _reduction(sum(widths[:2]) + MERGED_WIDTH, MERGED_WIDTH, MERGED_GROUPS)
        self.final = nn.Conv2d(MERGED_WIDTH, 2, 1, bias=False)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Five levels -> (N, 2, h, w) at the size of the second level."""
        size, deep_size = levels[1].shape[-2:], levels[2].shape[-2:]
        sizes = [size, size, deep_size, deep_size, deep_size]
        reduced = [_fit(layer(x), s).relu() for layer, x, s in zip(self.levels, levels, sizes, strict=True)]
        deep = _fit(self.deep(torch.cat(reduced[2:], 1)), size).relu()
        return self.final(self.merge(torch.cat([*reduced[:2], deep], 1)).relu())


def _reduction(channels: int, width: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width))


def _fit(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes maps as published: upsamples by an integer factor, then crops at the right and bottom."""
    height, width = size
    factor = round(height / maps.shape[-2])
    if factor > 1:
        maps = F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
    if maps.shape[-2] < height or maps.shape[-1] < width or factor < 1:
        maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    return maps[..., :height, :width]


@torch.no_grad()
def _find_levels(backbone: Backbone) -> list[int]:
    """The number of blocks up to the end of each of the five levels."""
    if not isinstance(backbone.stages[0], nn.Sequential):
        raise ConfigError(
            f"IRNet needs the single stages of a CNN such as a ResNet, {backbone.name!r} is a network over "
            "patches: set affinity.backbone.weights=null and affinity.backbone.name"
        )
    images, strides = trial_images(backbone), []
    trial = images.shape[-1]
    for block in backbone.stages[0].children():
        images = block(images)
        strides.append(trial // images.shape[-1])
    if STRIDE not in strides or strides[-1] != 2 * STRIDE:
        raise ConfigError(
            f"IRNet needs a backbone with features at strides {STRIDE} and {2 * STRIDE}, {backbone.name!r} "
            f"has {sorted(set(strides))} before its last two stages; use a CNN such as a ResNet"
        )
    fine = max(i for i, stride in enumerate(strides, start=1) if stride == STRIDE)
    lengths = [len(list(stage.children())) for stage in backbone.stages]
    ends = [sum(lengths[:2]), sum(lengths)]
    return [fine - 1, fine, lengths[0], *ends]
