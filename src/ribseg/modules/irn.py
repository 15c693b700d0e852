"""Training of IRNet on confident labels (docs/method.md, section 5.2)."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics.aggregation import MeanMetric

from ribseg.functional.irn import affinity_losses, check_radius
from ribseg.models.irn import STRIDE, IRNet
from ribseg.modules.classification import check_rates, published_sgd, with_polynomial_decay
from ribseg.types import MaskSample


class IRNModule(pl.LightningModule):
    """Learns class boundaries and displacements; published: 3 epochs, batches of 32 crops of 512 pixels.

    The training batches have `image` (N, 3, S, S) and `mask` (N, S, S), the confident labels. The validation
    batches are the training images without augmentation: over them the mean displacement is measured, after
    the last epoch for good. So validate once, at the end (`check_val_every_n_epoch=epochs`).

    Args:
        network: what is trained; its backbone is frozen.
        radius: of the pairs, in pixels at stride 4; crops must have at least 8 * radius pixels.
        lr: learning rate of the boundary branch at the first step.
        displacement_lr_factor: the displacement branch's rate is so many times `lr`.
        power: of the decay `(1 - step / steps)^power`.
        ignore_index: label of pixels that teach nothing.
        optimizer: makes the optimizer from its parameter groups; each has its own `lr`.

    Attributes:
        smallest_crop: side in pixels that crops must have at least, so that there are pairs.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        network: IRNet,
        radius: int = 10,
        lr: float = 0.1,
        displacement_lr_factor: float = 10.0,
        power: float = 0.9,
        ignore_index: int = 255,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] = published_sgd,
    ) -> None:
        super().__init__()
        check_radius(radius)
        check_rates(lr=lr, displacement_lr_factor=displacement_lr_factor, power=power)
        self.network, self.smallest_crop = network, 2 * STRIDE * radius
        self.radius, self.ignore_index = radius, ignore_index
        self.lr, self.displacement_lr_factor, self.power = lr, displacement_lr_factor, power
        self.optimizer = optimizer
        self.mean_y, self.mean_x = MeanMetric(), MeanMetric()
        self._measured = False

    def training_step(self, batch: MaskSample, batch_idx: int) -> Tensor:
        """The weighted sum of the five losses."""
        output = self.network(batch.image)
        boundary = output.boundary.float().sigmoid()  # the losses' logarithms need float32
        labels = strided_labels(batch.mask, boundary.shape[-2:])
        losses = affinity_losses(
            boundary, output.displacement.float(), labels, self.radius, self.ignore_index
        )
        named = {f"train/{name}": value for name, value in losses._asdict().items()}
        self.log_dict(named, batch_size=len(labels))
        self.log("train/loss", losses.total, prog_bar=True, batch_size=len(labels))
        return losses.total

    def validation_step(self, batch: MaskSample, batch_idx: int) -> None:
        """Gathers the mean displacement."""
        displacement = self.network(batch.image).displacement.float()
        per_image = displacement.mean((2, 3))
        self.mean_y.update(per_image[:, 0])
        self.mean_x.update(per_image[:, 1])

    def on_validation_epoch_end(self) -> None:
        """Hands the mean displacement to the network."""
        mean = torch.stack([self.mean_y.compute(), self.mean_x.compute()])
        self.network.displacement_mean.copy_(mean)
        self.mean_y.reset()
        self.mean_x.reset()
        self._measured = not self.trainer.sanity_checking

    def on_train_batch_start(self, batch: MaskSample, batch_idx: int) -> None:
        """What was measured before this step no longer holds."""
        self._measured = False

    def on_train_end(self) -> None:
        """Says so if the mean displacement is not that of the trained network."""
        if not self._measured:
            rank_zero_warn(
                "the mean displacement was not measured after the last step: pass the training images "
                "without augmentation as val_dataloaders and let the last epoch end with validation. The "
                "boundaries, and pseudo masks made with them, do not depend on it."
            )

    def new_optimizer(self) -> Optimizer:
        """The optimizer over its two parameter groups."""
        groups = [
            {"params": list(self.network.boundary.parameters()), "lr": self.lr},
            {
                "params": list(self.network.displacement.parameters()),
                "lr": self.lr * self.displacement_lr_factor,
            },
        ]
        return self.optimizer(groups)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Two learning rates; the schedule counts steps, not epochs."""
        return with_polynomial_decay(self.trainer, self.new_optimizer(), self.power)


def strided_labels(mask: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """(N, H, W) integer labels -> (N, h, w): the label at the middle of each cell, as Pillow's nearest does.

    >>> strided_labels(torch.arange(8)[None, None].expand(1, 4, 8), (1, 2)).tolist()
    [[[2, 6]]]
    """
    return F.interpolate(mask[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].to(mask.dtype)
