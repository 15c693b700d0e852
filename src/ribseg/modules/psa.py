"""Training of PSA's affinity network on confident labels (docs/method.md, section 5.5)."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from ribseg.functional.irn import check_radius
from ribseg.functional.psa import FeatureAffinityLosses, feature_affinity_losses
from ribseg.models.psa import STRIDE, PSANet
from ribseg.modules.classification import check_rates, published_sgd, with_polynomial_decay
from ribseg.modules.irn import strided_labels
from ribseg.types import MaskSample


class PSAModule(pl.LightningModule):
    """Learns features whose distance says whether two pixels belong together.

    Published: 8 epochs, batches of 8 crops of 448 pixels. The batches have `image` (N, 3, S, S) and `mask`
    (N, S, S), the confident labels.

    Args:
        network: what is trained; its backbone is frozen.
        radius: of the pairs, in pixels at stride 8; crops must have at least 16 * radius pixels.
        lr: learning rate at the first step. Published for new layers: 1.0.
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
        network: PSANet,
        radius: int = 5,
        lr: float = 1.0,
        power: float = 0.9,
        ignore_index: int = 255,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] = published_sgd,
    ) -> None:
        super().__init__()
        check_radius(radius)
        check_rates(lr=lr, power=power)
        self.network, self.smallest_crop = network, 2 * STRIDE * radius
        self.radius, self.ignore_index = radius, ignore_index
        self.lr, self.power, self.optimizer = lr, power, optimizer

    def training_step(self, batch: MaskSample, batch_idx: int) -> Tensor:
        """The weighted sum of the three losses."""
        losses = self._losses(batch)
        named = {f"train/{name}": value for name, value in losses._asdict().items()}
        self.log_dict(named, batch_size=len(batch.mask))
        self.log("train/loss", losses.total, prog_bar=True, batch_size=len(batch.mask))
        return losses.total

    def validation_step(self, batch: MaskSample, batch_idx: int) -> None:
        """The same loss on the training images without augmentation."""
        total = self._losses(batch).total
        self.log("val/loss", total, batch_size=len(batch.mask), sync_dist=True)

    def _losses(self, batch: MaskSample) -> FeatureAffinityLosses:
        features = self.network(batch.image).float()  # the losses' logarithms need float32
        labels = strided_labels(batch.mask, features.shape[-2:])
        return feature_affinity_losses(features, labels, self.radius, self.ignore_index)

    def new_optimizer(self) -> Optimizer:
        """The optimizer over its one parameter group."""
        learning = [weight for weight in self.network.parameters() if weight.requires_grad]
        return self.optimizer([{"params": learning, "lr": self.lr}])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One learning rate; the schedule counts steps, not epochs."""
        return with_polynomial_decay(self.trainer, self.new_optimizer(), self.power)
