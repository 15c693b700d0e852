"""A LightningModule of your own, that trains the classifier from which RIB starts.

    PYTHONPATH=examples python train.py experiment=rib_folder data.root=DATA \
        classifier.module._target_=own_lightning_module.FocalClassifier

or without Hydra, with a Trainer of your own:

    python examples/own_lightning_module.py DATA
"""

import argparse
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import ribseg
from ribseg.methods.base import Method
from ribseg.modules import LocalizationModule, WSSSDataModule
from ribseg.types import Sample


class FocalClassifier(pl.LightningModule):
    """Multi-label training with the focal loss (Lin et al., ICCV 2017).

    The stage `classifier` builds it with `classifier=` and the settings of `classifier.module`, and takes the
    weights of `self.classifier` when the training has ended.

    Args:
        classifier: (N, 3, H, W) images -> (N, C) logits.
        lr: learning rate.
        gamma: how much less well-classified labels count.
        settings: what else `classifier.module` holds; not used here.
    """

    def __init__(self, classifier: nn.Module, lr: float = 1e-3, gamma: float = 2.0, **settings: Any) -> None:
        super().__init__()
        self.classifier, self.lr, self.gamma = classifier, lr, gamma

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        logits = self.classifier(batch.image)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
        loss = ((1 - torch.exp(-loss)) ** self.gamma * loss).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Optimizer:
        """AdamW over all that learns."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def main(arguments: list[str] | None = None) -> list[ribseg.LocalizationMaps]:
    """Trains with a Trainer, and makes the maps of val with another one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--crop", type=int, default=256)
    options = parser.parse_args(arguments)
    pl.seed_everything(0)
    crop = options.crop
    data = WSSSDataModule(
        options.data, eval_splits=["val"], crop_size=crop, resize_long=(crop, 2 * crop), scales=(1.0, 0.5)
    )
    classifier = ribseg.Classifier(options.backbone, data.num_classes, freeze="none", classes=data.classes)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=options.epochs, limit_val_batches=0, **quiet)
    trainer.fit(FocalClassifier(classifier), datamodule=data)
    rib: Method = ribseg.RIB(classifier, steps=5, lr=1e-4, loss_views=(0,))  # type: ignore[assignment]
    # RIB learns inside predict, so gradients must be possible there.
    predictor = pl.Trainer(inference_mode=False, **quiet)
    found = predictor.predict(
        LocalizationModule(classifier, rib), data.prediction_loader(data.evals["val"].ids)
    )
    return [prediction.maps for prediction in found or []]


if __name__ == "__main__":
    print(f"maps of {len(main())} images")
