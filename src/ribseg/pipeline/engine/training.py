"""Training of a module by epochs, from its last checkpoint on."""

import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from ribseg.data.io.files import atomic_write
from ribseg.models.weights import BROKEN
from ribseg.modules.epoch_data import SamplesCheck
from ribseg.pipeline.engine.context import Context
from ribseg.pipeline.engine.store import Artefact


def fit(
    context: Context,
    artefact: Artefact,
    part: str,
    module: pl.LightningModule,
    epochs: int,
    data: pl.LightningDataModule,
    **kwargs: Any,
) -> dict[str, Any]:
    """Trains a module, from its last finished epoch on if there is one.

    Args:
        context: of the run.
        artefact: gets the checkpoints.
        part: of the configuration, whose callbacks there are.
        module: what is trained.
        epochs: in all.
        data: the batches of training and validation.
        kwargs: settings of the Trainer.

    Returns:
        The last metrics.
    """
    checkpoints = artefact.folder / "checkpoints"
    keep = ModelCheckpoint(checkpoints, filename="last", save_top_k=1, enable_version_counter=False)
    callbacks = [keep, SamplesCheck(), *context.callbacks(part).values()]
    trainer = context.trainer(artefact.stage, artefact.folder, callbacks, max_epochs=epochs, **kwargs)
    last = checkpoints / "last.ckpt"
    resume = context.agree(str(last) if readable(last, context) else None)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def readable(checkpoint: Path, context: Context) -> bool:
    """Whether there is a checkpoint to go on from; one that a kill left torn is passed over, and said so."""
    if not checkpoint.is_file():
        return False
    try:
        return "pytorch-lightning_version" in torch.load(checkpoint, map_location="cpu", weights_only=True)
    except BROKEN as error:
        context.console.print(f"  {checkpoint} cannot be read ({type(error).__name__}); training starts anew")
        return False


def save_state(module: nn.Module, path: Path) -> None:
    """Writes a module's weights atomically."""
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in module.state_dict().items()}, buffer)
    atomic_write(path, buffer.getvalue())


def weights_file(artefact: Artefact, name: str) -> Path:
    """Where a finished stage has its weights: `<name>.safetensors`, or `<name>.pt` of earlier versions."""
    former = artefact.folder / f"{name}.pt"
    return former if former.is_file() else artefact.folder / f"{name}.safetensors"
