"""Training of ReCAM's classifier: without its second head, then with it (docs/method.md, section 3.8)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ribseg.checks import check_number
from ribseg.errors import ConfigError
from ribseg.functional.recam import single_class_loss
from ribseg.models.classifier import ReCAMClassifier
from ribseg.modules.classification import ClassifierModule
from ribseg.modules.decay import Groups, per_step
from ribseg.types import Sample


class ReCAMModule(ClassifierModule):
    """Trains a classifier by its usual loss, then by this and the softmax loss of its second head.

    In the released program these are two trainings, each with a polynomial decay of its rates; here they
    follow each other.

    Args:
        classifier: with a second head.
        start: share of the steps of the first training, in [0, 1).
        weight: lambda, of the softmax loss.
        second_lr: rate of the second head at the first step of the second training.
        second_factor: multiplier of `second_lr` for backbone and first head.
        kwargs: of `ClassifierModule`; its rates are those of the first training.

    Raises:
        ConfigError: a number is out of range, or the classifier has no second head.
    """

    classifier: ReCAMClassifier

    def __init__(
        self,
        classifier: ReCAMClassifier,
        start: float = 5 / 9,
        weight: float = 1.0,
        second_lr: float = 5e-4,
        second_factor: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if not isinstance(classifier, ReCAMClassifier):
            raise ConfigError(
                "expected a classifier with a second head, classifier.model._target_=ribseg.models."
                f"ReCAMClassifier, got {type(classifier).__name__}"
            )
        super().__init__(classifier, **kwargs)
        check_number("start", start, low=0, below=1)
        check_number("weight", weight, low=0)
        check_number("second_lr", second_lr, above=0)
        check_number("second_factor", second_factor, low=0)
        check_number("lr", self.lr, above=0)  # the rates of the second training are multiples of it
        check_number("head_lr_factor", self.head_lr_factor, above=0)
        self.start, self.weight = start, weight
        self.second_lr, self.second_factor = second_lr, second_factor
        # Number of steps of the first training; configure_optimizers knows it.
        self.first_steps = 0

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        features = self.classifier.features(batch.image)
        loss = self.loss(self.classifier.head(features.mean((2, 3), keepdim=True)).flatten(1), batch.labels)
        number = len(batch.labels)
        if self.global_step < self.first_steps:
            # All weights are in the graph in each step, which DDP expects.
            loss = loss + 0 * self.classifier.second.weight.sum()
        else:
            single = single_class_loss(self.classifier.single_class_logits(features), batch.labels)
            self.log("train/single_class", single, batch_size=number)
            loss = loss + self.weight * single
        self.log("train/loss", loss, prog_bar=True, batch_size=number)
        return loss

    def parameter_groups(self) -> Groups:
        """Backbone, first head and second head."""
        second = {"params": list(self.classifier.second.parameters()), "lr": self.second_lr}
        return [*super().parameter_groups(), second]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Optimizer and the rates of both trainings, step by step."""
        optimizer, steps = self.new_optimizer(), int(self.trainer.estimated_stepping_batches)
        first = self.first_steps = round(self.start * steps)
        slow = self.second_lr * self.second_factor
        pairs = [(1.0, slow / self.lr), (1.0, slow / (self.lr * self.head_lr_factor)), (0.0, 1.0)]

        def factor(step: int, before: float, after: float) -> float:
            if step < first:
                return before * (1 - step / first) ** self.power
            return after * max(0.0, 1 - (step - first) / max(steps - first, 1)) ** self.power

        factors = [partial(factor, before=before, after=after) for before, after in pairs]
        schedule = LambdaLR(optimizer, list[Callable[[int], float]](factors))
        return per_step(optimizer, schedule)
