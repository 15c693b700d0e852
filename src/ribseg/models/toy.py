"""The small network of the toy experiment (docs/method.md, section 7)."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

CHANNELS = (16, 32, 32, 64, 64)
STRIDES = (1, 2, 1, 2, 1)


class ToyNet(nn.Module):
    """Five convolutions with ReLU, global average pooling, and a linear layer without bias.

    It has `features(x)` and `weight`, as `ribseg.RIB` requires. It averages the image's channels, so it takes
    gray images as well as RIB's three-channel views.

    Args:
        num_classes: C.
        channels: of each convolution.
        strides: of each convolution.

    Attributes:
        layers: the convolutions, each with its ReLU, for gradient maps.

    >>> import torch
    >>> net = ToyNet()
    >>> net(torch.zeros(2, 3, 64, 64)).shape, net.features(torch.zeros(2, 1, 64, 64)).shape
    (torch.Size([2, 2]), torch.Size([2, 64, 16, 16]))
    """

    def __init__(
        self, num_classes: int = 2, channels: Sequence[int] = CHANNELS, strides: Sequence[int] = STRIDES
    ) -> None:
        super().__init__()
        if len(channels) != len(strides) or not channels:
            raise ValueError(f"expected a stride per convolution, got channels {channels}, strides {strides}")
        self.layers = nn.ModuleList()
        for before, after, stride in zip([1, *channels[:-1]], channels, strides, strict=True):
            convolution = nn.Conv2d(before, after, 3, stride, padding=1)
            # torch's default initialization shrinks the signal per layer; some trainings never converge.
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, convolution.bias))
            self.layers.append(nn.Sequential(convolution, nn.ReLU()))
        self.head = nn.Linear(channels[-1], num_classes, bias=False)

    @property
    def weight(self) -> nn.Parameter:
        """(C, D), the weights of the last layer."""
        return cast(nn.Parameter, self.head.weight)

    def features(self, images: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) images in [0, 1] -> (N, D, h, w) features of the last convolution."""
        features = images.mean(1, keepdim=True)
        for layer in self.layers:
            features = layer(features)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) -> (N, C) logits."""
        return self.head(self.features(images).mean((-2, -1)))
