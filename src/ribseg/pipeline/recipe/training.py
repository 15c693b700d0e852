"""Training with checkpoints, and the files of weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from ribseg.errors import DAMAGED, ConfigError, RibsegError
from ribseg.files import atomic_file
from ribseg.modules.epoch_data import SamplesCheck
from ribseg.pipeline.recipe.session import Session
from ribseg.seeds import rng
from ribseg.store.artefact import Artefact


class WholeCheckpoint(ModelCheckpoint):
    """Checkpoints of whole epochs, or of every few steps: none where something ends the training in between.

    What resumes from a checkpoint takes its epoch for finished.

    Args:
        folder: of the files.
        filename: of the file, without its ending.
        every: number of steps; None for epochs.
        kwargs: of Lightning's class.
    """

    def __init__(self, folder: Path, filename: str, every: int | None = None, **kwargs: Any) -> None:
        super().__init__(folder, filename, save_top_k=1, enable_version_counter=False, **kwargs)
        self.every = every

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves after a whole epoch."""
        if is_whole(trainer, self.every):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves after a validation that was due."""
        if is_whole(trainer, self.every):
            super().on_validation_end(trainer, pl_module)


class SeededIterations(pl.Callback):
    """Makes what a network draws in an iteration, as its dropout does, a function of seed and iteration.

    So a training that is resumed draws what it would have drawn.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Seeds torch."""
        draw = rng(self.seed, "iteration", trainer.fit_loop.total_batch_idx, trainer.global_rank)
        torch.manual_seed(int(draw.integers(2**63)))


class ValidationCurve(pl.Callback):
    """Keeps a metric of every validation; a training that is resumed goes on with the earlier ones.

    Args:
        metric: its name in the log.

    Attributes:
        values: iteration -> its value.
    """

    def __init__(self, metric: str) -> None:
        self.metric, self.values = metric, dict[int, float]()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the value."""
        if self.metric in trainer.callback_metrics:  # a module of a user's own may log others
            self.values[trainer.global_step] = float(trainer.callback_metrics[self.metric])

    def state_dict(self) -> dict[str, Any]:
        """The values so far, for a checkpoint."""
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes those of a checkpoint."""
        self.values = dict(state_dict["values"])


def is_whole(trainer: pl.Trainer, every: int | None) -> bool:
    """Whether a training is at the end of an epoch, or at a multiple of a number of steps."""
    if every is not None:
        return trainer.global_step % every == 0
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def check_ended(trainer: pl.Trainer, stage: str, epochs: int | None = None, steps: int | None = None) -> None:
    """Checks that a training ended by itself, or by an `EarlyStopping` on its metric.

    Args:
        trainer: after `fit`.
        stage: name of the training.
        epochs: total number; None with steps.
        steps: total number; None with epochs.

    Raises:
        RibsegError: something else stopped it, as `trainer.max_time`; what it has learnt is kept, to go on.
    """
    done, wanted = (trainer.global_step, steps) if epochs is None else (trainer.current_epoch, epochs)
    whole = epochs is None or is_whole(trainer, None)
    rules = [each for each in trainer.callbacks if isinstance(each, EarlyStopping)]  # type: ignore[attr-defined]
    if (whole and done >= (wanted or 0)) or any(rule.stopping_reason_message for rule in rules):
        return
    kind, at = ("iteration", done) if epochs is None else ("epoch", max(done, 1) if not whole else done + 1)
    raise RibsegError(
        f"{stage} was stopped in {kind} {at} of {wanted}, by "
        "trainer.max_time or a callback, and is not complete. The same command without that limit goes on "
        "after the last checkpoint. EarlyStopping, or a class derived from it, may end it by a metric"
    )


def fit(
    session: Session,
    artefact: Artefact,
    part: str,
    module: pl.LightningModule,
    epochs: int,
    data: pl.LightningDataModule,
    **kwargs: Any,
) -> dict[str, Any]:
    """Trains a module by epochs, resuming after its last finished epoch; returns the last metrics.

    Args:
        session: of the run.
        artefact: gets the checkpoints.
        part: section of the configuration with the callbacks.
        module: to be trained.
        epochs: total number.
        data: batches for training and validation.
        kwargs: further settings of the Trainer.
    """
    checkpoints = artefact.folder / "checkpoints"
    keep = WholeCheckpoint(checkpoints, "last")
    callbacks = [keep, SamplesCheck(), *session.callbacks(part)]
    trainer = session.trainer(artefact.stage, artefact.folder, callbacks, max_epochs=epochs, **kwargs)
    metrics = fit_from(session, trainer, module, data, checkpoints / "last.ckpt")
    check_ended(trainer, artefact.stage, epochs)
    return metrics


def fit_from(
    session: Session,
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    checkpoint: Path,
) -> dict[str, float]:
    """Trains, resuming from a checkpoint if it can be read; returns the last metrics."""
    resume = session.group.agree(str(checkpoint) if readable(checkpoint, session) else None)
    if resume:
        session.say("  resuming from its last checkpoint")
    trainer.callbacks.append(SeededIterations(session.cfg.seed))  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def check_finite(artefact: Artefact, weights: Iterable[Tensor], setting: str, lr: Any) -> None:
    """Raises a ConfigError that names the learning rate's setting if trained weights are not finite."""
    if not all(bool(torch.isfinite(weight).all()) for weight in weights):
        raise ConfigError(
            f"the weights of {artefact.stage} are no longer finite: its training has diverged. Lower "
            f"{setting}={lr}; {artefact.folder} can be deleted"
        )


def readable(checkpoint: Path, session: Session) -> bool:
    """Whether a checkpoint exists and can be read; reports a broken one, as a killed process may leave it."""
    if not checkpoint.is_file():
        return False
    try:
        return "pytorch-lightning_version" in torch.load(checkpoint, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        session.say(f"  {checkpoint} cannot be read ({type(error).__name__}); training starts anew")
        return False


def save_state(module: nn.Module, path: Path) -> None:
    """Writes a module's weights atomically."""
    with atomic_file(path) as file:
        torch.save({name: value.cpu() for name, value in module.state_dict().items()}, file)
