"""Training with checkpoints, and the files of weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from ribseg.errors import DAMAGED, ConfigError
from ribseg.files import atomic_file
from ribseg.modules.epoch_data import SamplesCheck
from ribseg.pipeline.recipe.session import Session
from ribseg.store.artefact import Artefact


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
    keep = ModelCheckpoint(checkpoints, filename="last", save_top_k=1, enable_version_counter=False)
    callbacks = [keep, SamplesCheck(), *session.callbacks(part)]
    trainer = session.trainer(artefact.stage, artefact.folder, callbacks, max_epochs=epochs, **kwargs)
    return fit_from(session, trainer, module, data, checkpoints / "last.ckpt")


def fit_from(
    session: Session,
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    checkpoint: Path,
) -> dict[str, float]:
    """Trains, resuming from a checkpoint if it can be read; returns the last metrics."""
    resume = session.group.agree(str(checkpoint) if readable(checkpoint, session) else None)
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
