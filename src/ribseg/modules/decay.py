"""Optimizer and learning rates of the published trainings."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, PolynomialLR

from ribseg.checks import check_number

Groups = list[dict[str, Any]]


def published_sgd(groups: Groups) -> Optimizer:
    """SGD of the published recipe.

    The released program passes its weight decay in the place of the momentum, hence momentum=1e-4.
    """
    return SGD(groups, momentum=1e-4, weight_decay=1e-4)


def check_rates(**values: float) -> None:
    """Raises a ConfigError unless all values (learning rates, multipliers, powers) are numbers >= 0."""
    for name, value in values.items():
        check_number(name, value, low=0)


def per_step(optimizer: Optimizer, schedule: LRScheduler) -> OptimizerLRSchedulerConfig:
    """What `configure_optimizers` returns, for a schedule that moves on with each step."""
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class DecayingModule(pl.LightningModule, ABC):
    """Base class of trainings with the decay `(1 - step / steps)^power`, as in all published recipes.

    Attributes:
        optimizer: makes the optimizer from `parameter_groups`.
        power: of the decay.
    """

    optimizer: Callable[[Groups], Optimizer]
    power: float

    @abstractmethod
    def parameter_groups(self) -> Groups:
        """The trained parameters, each group with its `lr`."""

    def new_optimizer(self) -> Optimizer:
        """The optimizer over `parameter_groups`."""
        return self.optimizer(self.parameter_groups())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Optimizer and polynomial decay per step."""
        optimizer, steps = self.new_optimizer(), int(self.trainer.estimated_stepping_batches)
        return per_step(optimizer, PolynomialLR(optimizer, total_iters=max(steps, 1), power=self.power))
