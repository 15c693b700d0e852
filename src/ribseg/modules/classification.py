"""Training of the image classifier (docs/method.md, section 2.1)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from ribseg.functional.losses import Loss, check_loss, cross_entropy
from ribseg.models.classifier import Classifier
from ribseg.modules.decay import DecayingModule, Groups, check_rates, published_sgd
from ribseg.types import Sample


class MeanAveragePrecision(Metric):
    """Average precision, averaged over the classes that occur.

    torchmetrics' own mean counts absent classes as 0.

    >>> metric = MeanAveragePrecision()
    >>> metric.update(torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([[1, 0], [0, 0]]))
    >>> metric.compute()
    tensor(1.)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: (N, C) float logits and (N, C) labels in {0, 1}."""
        self.logits.append(logits.detach())
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """Scalar in [0, 1]; NaN if no image has a class."""
        scores, labels = dim_zero_cat(self.logits).float().sigmoid(), dim_zero_cat(self.labels).long()
        occurring = labels.any(0).nonzero().flatten().tolist()
        values = [binary_average_precision(scores[:, c], labels[:, c]) for c in occurring]
        return torch.stack(values).mean() if values else scores.new_tensor(torch.nan)


class ClassifierModule(DecayingModule):
    """Multi-label classification with two learning rates and polynomial decay per step.

    Args:
        classifier: the network to train.
        lr: learning rate of the backbone at the first step.
        head_lr_factor: multiplier of `lr` for the head.
        power: of the decay `(1 - step / steps)^power`.
        optimizer: makes the optimizer from its parameter groups; each has its own `lr`.
        loss: callable (logits (N,C), labels (N,C)) -> scalar; None: the published multi-label soft margin
            loss (`ribseg.functional.losses.cross_entropy`).

    Raises:
        ConfigError: a number is out of range, or the loss is not a finite scalar with a gradient.
    """

    def __init__(
        self,
        classifier: Classifier,
        lr: float = 0.1,
        head_lr_factor: float = 10.0,
        power: float = 0.9,
        optimizer: Callable[[Groups], Optimizer] = published_sgd,
        loss: Loss | None = None,
    ) -> None:
        super().__init__()
        check_rates(lr=lr, head_lr_factor=head_lr_factor, power=power)
        if loss is not None:
            check_loss(loss, torch.zeros(2, getattr(classifier, "num_classes", 2)))
        self.classifier, self.loss = classifier, loss or cross_entropy
        self.lr, self.head_lr_factor, self.power = lr, head_lr_factor, power
        self.optimizer = optimizer
        self.val_map = MeanAveragePrecision()

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C) logits."""
        return self.classifier(images)

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        loss = self.loss(self(batch.image), batch.labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Logs the loss and accumulates the mean average precision."""
        logits, labels = self(batch.image), batch.labels
        self.val_map.update(logits, labels.int())
        loss = self.loss(logits, labels)
        self.log("val/loss", loss, prog_bar=True, batch_size=len(labels), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Logs the mean average precision, unless no class occurs."""
        value = self.val_map.compute()
        if not value.isnan():
            self.log("val/mAP", value, prog_bar=True)
        self.val_map.reset()

    def parameter_groups(self) -> Groups:
        """Backbone and head."""
        backbone, head = self.classifier.parameter_groups()
        return [{"params": backbone, "lr": self.lr}, {"params": head, "lr": self.lr * self.head_lr_factor}]
