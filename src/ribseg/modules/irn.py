"""Training of IRNet on confident labels (docs/method.md, section 5.2)."""

from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torchmetrics.aggregation import MeanMetric

from ribseg.functional.irn import AffinityLosses, affinity_losses
from ribseg.models.irn import IRNet
from ribseg.modules.affinity import AffinityModule, strided_labels
from ribseg.modules.decay import Groups, check_rates
from ribseg.types import MaskSample


class IRNModule(AffinityModule[IRNet]):
    """Trains class boundaries and displacements; published: 3 epochs, batches of 32 crops of 512 pixels.

    Validation batches are the training images without augmentation, over which the mean displacement is
    measured. Only the measurement after the last epoch counts: validate once, at the end
    (`check_val_every_n_epoch=epochs`).

    Args:
        network: the network to train; its backbone is frozen.
        radius: of the pairs, in pixels at stride 4; crops must have at least 8 * radius pixels.
        lr: learning rate of the boundary branch at the first step.
        displacement_lr_factor: multiplier of `lr` for the displacement branch.
        kwargs: power, ignore_index and optimizer of `AffinityModule`.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        network: IRNet,
        radius: int = 10,
        lr: float = 0.1,
        displacement_lr_factor: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, radius, lr, **kwargs)
        check_rates(displacement_lr_factor=displacement_lr_factor)
        self.displacement_lr_factor = displacement_lr_factor
        self.mean_y, self.mean_x = MeanMetric(), MeanMetric()
        self._measured = False

    def losses(self, batch: MaskSample) -> AffinityLosses:
        """The five losses of a batch."""
        output = self.network(batch.image)
        boundary = output.boundary.float().sigmoid()  # the losses' logarithms need float32
        labels = strided_labels(batch.mask, boundary.shape[-2:])
        displacement = output.displacement.float()
        return affinity_losses(boundary, displacement, labels, self.radius, self.ignore_index)

    def parameter_groups(self) -> Groups:
        """The parameters of the two branches, each with its own learning rate."""
        boundary, displacement = self.network.boundary, self.network.displacement
        return [
            {"params": list(boundary.parameters()), "lr": self.lr},
            {"params": list(displacement.parameters()), "lr": self.lr * self.displacement_lr_factor},
        ]

    def validation_step(self, batch: MaskSample, batch_idx: int) -> None:
        """Accumulates the mean displacement."""
        displacement = self.network(batch.image).displacement.float()
        per_image = displacement.mean((2, 3))
        self.mean_y.update(per_image[:, 0])
        self.mean_x.update(per_image[:, 1])

    def on_validation_epoch_end(self) -> None:
        """Stores the mean displacement in the network."""
        mean = torch.stack([self.mean_y.compute(), self.mean_x.compute()])
        self.network.displacement_mean.copy_(mean)
        self.mean_y.reset()
        self.mean_x.reset()
        self._measured = not self.trainer.sanity_checking

    def on_train_batch_start(self, batch: MaskSample, batch_idx: int) -> None:
        """Marks the mean displacement as outdated: the step changes the weights."""
        self._measured = False

    def on_train_end(self) -> None:
        """Warns if the mean displacement is not that of the trained network."""
        if not self._measured:
            rank_zero_warn(
                "the mean displacement was not measured after the last step: pass the training images "
                "without augmentation as val_dataloaders and let the last epoch end with validation. The "
                "boundaries, and pseudo masks made with them, do not depend on it."
            )
