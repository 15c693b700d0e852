"""The progress of a Trainer, shown as that of every other long job."""

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console

from ribseg.progress import Tracker


class TrainerProgress(ProgressBar):
    """Shows a training in batches, over all epochs, and a prediction in images, over all processes.

    In the place of Lightning's own progress bar. The numbers of the loss and of the validation that a module
    logs with `prog_bar=True` stand behind the remaining time, which includes validations.

    Args:
        title: of the stage.
        show: see `ribseg.progress.check_progress`.
        console: see `ribseg.progress.Tracker`.
        counted: called at the end with the unit and the number of items that were done.
    """

    def __init__(
        self,
        title: str,
        show: bool | str = True,
        console: Console | None = None,
        counted: Callable[[str, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.title, self.show, self.console, self.counted = title, show, console, counted
        self.tracker: Tracker | None = None

    def disable(self) -> None:
        """Shows nothing from here on."""
        self.show = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins with the batches that a resumed training has left."""
        self._begin(f"Training {self.title}", batches_of(trainer), "batch", _batches_done(trainer))

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Counts a batch."""
        self._update(_batches_done(trainer) + 1, self._metrics(trainer))  # Lightning counts it after this

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Says how far the validation is, which may take longer than a minute."""
        total = trainer.num_val_batches[dataloader_idx]
        if self.tracker is not None:
            self._update(self.tracker.done, f"validating {batch_idx + 1}/{total}")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins with the number of images of all processes."""
        self._begin(f"Predicting {self.title}", images_of(trainer), "image", 0)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Counts an image in each process; they take turns over the images."""
        done, total = (batch_idx + 1) * trainer.world_size, images_of(trainer)
        self._update(done if total is None else min(done, total), "")

    def end(self, *args: Any, **kwargs: Any) -> None:
        """Ends the bar, or prints the last line; also before an error is printed."""
        if self.tracker is None:
            return
        self.tracker.close()
        if self.counted is not None:
            self.counted(self.tracker.unit, self.tracker.done - self.tracker.before)
        self.tracker = None

    on_train_end = on_predict_end = on_exception = end

    def __getstate__(self) -> dict[str, Any]:
        """The attributes without the console, whose locks cannot be pickled for spawned processes."""
        return vars(self) | {"console": None, "tracker": None, "counted": None}

    def _begin(self, title: str, total: int | None, unit: str, done: int) -> None:
        self.tracker = Tracker(title, total, self.show, self.console, unit, done)

    def _update(self, done: int, note: str) -> None:
        if self.tracker is not None:
            self.tracker.update(done, note)

    def _metrics(self, trainer: pl.Trainer) -> str:
        if self.tracker is None or self.tracker.mode is None:
            return ""  # reading the loss would wait for the device
        epochs = trainer.max_epochs or -1
        epoch = [f"epoch {trainer.current_epoch + 1}/{epochs}"] if epochs > 1 else []
        values = self.get_metrics(trainer, trainer.lightning_module)
        values.pop("v_num", None)
        numbers = {k: f"{v:.3g}" if isinstance(v, int | float) else v for k, v in values.items()}
        return ", ".join(epoch + [f"{name} {number}" for name, number in numbers.items()])


def batches_of(trainer: pl.Trainer) -> int | None:
    """The number of batches of a training of one process, over all epochs; None without an end."""
    if trainer.max_steps >= 0:
        return trainer.max_steps * trainer.accumulate_grad_batches
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if epochs is None or epochs < 0 or math.isinf(batches):
        return None
    return int(epochs * batches)


def images_of(trainer: pl.Trainer) -> int | None:
    """The number of images of a prediction, over all processes; None if a loader does not know it."""
    batches = sum(trainer.num_predict_batches) * trainer.world_size
    return None if math.isinf(batches) else int(batches)


def _batches_done(trainer: pl.Trainer) -> int:
    return trainer.fit_loop.epoch_loop.batch_progress.total.completed
