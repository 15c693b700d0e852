"""Training of the toy network, and its gradients before and after RIB (docs/method.md, section 7)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from ribseg.analysis import gradient_map, gradients_before_and_after, high_gradient_ratio
from ribseg.analysis.regions import check_gradient
from ribseg.checks import check_number, check_switch
from ribseg.data.demo.digits import ToyImages
from ribseg.functional.activations import Activation
from ribseg.functional.losses import cross_entropy
from ribseg.methods.rib import RIB
from ribseg.models.toy import ToyNet
from ribseg.modules.decay import per_step


class ToyModule(pl.LightningModule):
    """Trains the toy network with Adam and a one-cycle learning rate.

    Args:
        network: the network to train.
        loss: logits (N, C), labels (N, C) -> scalar.
        lr: the maximum learning rate.

    Raises:
        ConfigError: lr is not a number > 0.
    """

    def __init__(
        self, network: ToyNet, loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy, lr: float = 3e-3
    ) -> None:
        super().__init__()
        check_number("lr", lr, above=0)
        self.network, self.loss, self.lr = network, loss, lr

    def training_step(self, batch: ToyImages, batch_idx: int) -> Tensor:
        """Returns the loss of a batch with images (N, 1, 64, 64) and labels (N, 2)."""
        loss = self.loss(self.network(batch.images), batch.labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.labels))
        return loss

    def new_optimizer(self) -> Optimizer:
        """Adam over all parameters."""
        return Adam(self.parameters(), lr=self.lr)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Optimizer and one-cycle schedule per step."""
        optimizer = self.new_optimizer()
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = OneCycleLR(optimizer, self.lr, total_steps=max(steps, 2))
        return per_step(optimizer, schedule)


class Measured(NamedTuple):
    """Measurements of one image before and after RIB.

    Attributes:
        before: (L + 1, R) high gradient ratios, per layer (the class prediction last) and region.
        after: the same under the adapted weights; NaN after a non-finite adaptation.
        maps: (2, L + 1, H, W) gradient maps, before and after, smoothed, not normalised.
        steps: SGD steps.
        stopped: the stop rule that ended the adaptation, if any.
    """

    before: Tensor
    after: Tensor
    maps: Tensor
    steps: int
    stopped: str | None


class BottleneckModule(pl.LightningModule):
    """High gradient ratios of single images before and after RIB, in `Trainer.predict`.

    Args:
        network: to analyze; RIB restores its weights.
        pooling: of RIB.
        activation: the last activation of the class prediction; None for the logits.
        gradient: arguments of `ribseg.analysis.high_gradient_ratio`.
        wrong_class: control: adapt to the class that is not in the image, and analyze its prediction.
        kwargs: arguments of `ribseg.RIB`.

    Raises:
        ConfigError: an argument, also of `gradient`, is out of range.
        TypeError: an unknown argument in `gradient`.
    """

    def __init__(
        self,
        network: ToyNet,
        pooling: Callable[[Tensor, Tensor], Tensor],
        activation: Activation | None = None,
        gradient: Mapping[str, Any] | None = None,
        wrong_class: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_switch("wrong_class", wrong_class)
        self.network, self.activation, self.gradient = network, activation, dict(gradient or {})
        self.wrong_class = wrong_class
        check_gradient(**self.gradient)
        self.rib = RIB(network, pooling, **kwargs)

    def predict_step(self, batch: ToyImages, batch_idx: int) -> Measured:
        """Returns the measurements of one image (1, 1, H, W), labels (1, C) and regions (1, R, H, W)."""
        # RIB's views have three channels and a mirror image; a mirrored digit is none, so it is repeated.
        view = batch.images.expand(2, 3, -1, -1)
        labels = 1 - batch.labels[0] if self.wrong_class else batch.labels[0]
        found = gradients_before_and_after(
            self.rib, [view], labels, list(self.network.layers), activation=self.activation
        )
        before, after = (self.ratios(stack, batch.regions) for stack in (found.before, found.after))
        if found.stopped == "not_finite":
            after = torch.full_like(after, float("nan"))
        sigma = self.gradient.get("sigma", 0.0)
        maps = [torch.cat([gradient_map(g, sigma) for g in stack]) for stack in (found.before, found.after)]
        return Measured(before.cpu(), after.cpu(), torch.stack(maps).cpu(), found.steps, found.stopped)

    def ratios(self, gradients: list[Tensor], regions: Tensor) -> Tensor:
        """Gradients (1, C, H, W) per layer and regions (1, R, H, W) -> (L + 1, R)."""
        number = regions.shape[1]
        rows = [
            high_gradient_ratio(g.expand(number, -1, -1, -1), regions[0], **self.gradient) for g in gradients
        ]
        return torch.stack(rows)
