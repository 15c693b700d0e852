"""Common training code of the affinity networks IRNet and PSA."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from ribseg.functional.irn import AffinityLosses, check_radius
from ribseg.functional.psa import FeatureAffinityLosses
from ribseg.models.irn import IRNet
from ribseg.models.psa import PSANet
from ribseg.modules.decay import DecayingModule, Groups, check_rates, published_sgd
from ribseg.types import MaskSample

Network = TypeVar("Network", IRNet, PSANet)


class AffinityModule(DecayingModule, Generic[Network]):
    """Base class for training affinity networks on confident labels.

    Training batches have `image` (N, 3, S, S) and `mask` (N, S, S), the confident labels.

    Args:
        network: the network to train; its backbone is frozen.
        radius: of the pairs, in pixels at the stride of the network.
        lr: learning rate at the first step.
        power: of the decay `(1 - step / steps)^power`.
        ignore_index: label of ignored pixels.
        optimizer: makes the optimizer from its parameter groups; each has its own `lr`.

    Attributes:
        smallest_crop: smallest side of a crop in pixels that contains pairs.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        network: Network,
        radius: int,
        lr: float,
        power: float = 0.9,
        ignore_index: int = 255,
        optimizer: Callable[[Groups], Optimizer] = published_sgd,
    ) -> None:
        super().__init__()
        check_radius(radius)
        check_rates(lr=lr, power=power)
        self.network: Network = network
        self.smallest_crop = 2 * network.stride * radius
        self.radius, self.ignore_index = radius, ignore_index
        self.lr, self.power, self.optimizer = lr, power, optimizer

    @abstractmethod
    def losses(self, batch: MaskSample) -> AffinityLosses | FeatureAffinityLosses:
        """The losses of a batch."""

    def training_step(self, batch: MaskSample, batch_idx: int) -> Tensor:
        """Returns the weighted sum of the losses, and logs each of them."""
        losses = self.losses(batch)
        named = {f"train/{name}": value for name, value in losses._asdict().items()}
        self.log_dict(named, batch_size=len(batch.mask))
        self.log("train/loss", losses.total, prog_bar=True, batch_size=len(batch.mask))
        return losses.total


def strided_labels(mask: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """(N, H, W) integer labels -> (N, h, w): the label at the center of each cell, as Pillow's nearest.

    >>> strided_labels(torch.arange(8)[None, None].expand(1, 4, 8), (1, 2)).tolist()
    [[[2, 6]]]
    """
    return F.interpolate(mask[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].to(mask.dtype)
