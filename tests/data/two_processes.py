"""Notes what Lightning hands to each process: `python two_processes.py TREE FOLDER` starts two of them.

Forked before anything has computed, they need no second and third interpreter.
"""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch

from ribseg.modules.data_module import WSSSDataModule

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
FIT = {"max_epochs": 2, "enable_checkpointing": False, "num_sanity_val_steps": 0}
TWO = {"devices": 2, "strategy": "ddp_fork"}


class Look(pl.LightningModule):
    """Trains nothing and notes every sample; a file for each process."""

    def __init__(self, folder):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.folder, self.rows = Path(folder), []

    def training_step(self, batch, batch_idx):
        for name, image in zip(batch.id, batch.image, strict=True):
            self.rows.append(f"train {self.current_epoch} {batch_idx} {name} {image.double().sum().item()}")
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.rows += [f"val {self.current_epoch} 0 {name} 0" for name in batch.id]

    def on_train_end(self):
        name = f"fit-{self.trainer.world_size}-{self.global_rank}"
        (self.folder / name).write_text("\n".join(self.rows))

    def predict_step(self, batch, batch_idx):
        with (self.folder / f"predicted-{batch.id}").open("a") as file:
            file.write(str(self.global_rank))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(tree, folder, workers, **settings):
    data = WSSSDataModule(tree, crop_size=24, resize_long=(16, 30), batch_size=2, num_workers=workers)
    pl.Trainer(**QUIET, **FIT, **settings).fit(Look(folder), datamodule=data)


def predict(tree, folder, **settings):
    """Five images, and then one."""
    data = WSSSDataModule(tree, crop_size=16, num_workers=0)
    for ids in (data.all_ids[:5], data.all_ids[5:6]):
        trainer = pl.Trainer(**QUIET, **settings)
        loader = data.prediction_loader(ids, processes=trainer.world_size)
        trainer.predict(Look(folder), loader, return_predictions=False)


if __name__ == "__main__":
    train(*sys.argv[1:], workers=1, **TWO)
    predict(*sys.argv[1:], **TWO)
