"""The networks of the toy experiment, one per seed."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ribseg.data.toy import Digits, ToyBatches, digits_fingerprint, read_digits, split_digits, toy_images
from ribseg.errors import ConfigError
from ribseg.functional.activations import last_activation
from ribseg.losses import cross_entropy, rib_loss, signed_rib_loss, squared_error
from ribseg.models import ToyNet
from ribseg.modules.toy import ToyModule
from ribseg.pipeline.context import Context, plain
from ribseg.pipeline.loggers import finish_loggers
from ribseg.pipeline.stages import Stage, save_state
from ribseg.pipeline.store import Artefact

WEIGHTS = "network.pt"
Loss = Callable[[Tensor, Tensor], Tensor]


class ToyNetworksStage(Stage):
    """Trains the toy network once per seed."""

    name = "toy_networks"
    reads_data = False

    def artefact(self, context: Context) -> Artefact:
        """Depends on the digits and the recipe; nothing of the data set of the other stages."""
        cfg = context.cfg.bottleneck
        settings = {name: plain(cfg[name]) for name in ("seeds", "marked", "training")}
        settings |= {
            "seed": context.cfg.seed,
            "images": cfg.images.train,
            "trainer": context.trainer_settings(),
        }
        return context.store.artefact(self.name, settings, {}, digits_fingerprint(toy_digits(context)))

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether the weights of all seeds are there."""
        return all(network_path(artefact, seed).is_file() for seed in seeds(context))

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Trains the networks that are not there yet, in the first process."""

        def train() -> None:
            digits = split_digits(toy_digits(context), "train")
            for seed in seeds(context):
                if not network_path(artefact, seed).is_file():
                    start = time.perf_counter()
                    save_state(train_network(context, artefact, digits, seed), network_path(artefact, seed))
                    context.console.print(f"  seed {seed}: {time.perf_counter() - start:.0f} s")

        context.on_first(train)
        return {}


def seeds(context: Context) -> range:
    """The seeds of the networks."""
    return range(context.cfg.seed, context.cfg.seed + context.cfg.bottleneck.seeds)


def toy_digits(context: Context) -> Digits:
    """The configured handwritten digits."""
    return read_digits(context.cfg.bottleneck.mnist_root)


def network_path(artefact: Artefact, seed: int) -> Path:
    """Where the weights of a seed lie."""
    return artefact.folder / f"seed-{seed}" / WEIGHTS


def training_loss(context: Context) -> Loss:
    """The configured loss of the training.

    Raises:
        ConfigError: unknown, or its activation does not belong to it.
    """
    cfg = context.cfg.bottleneck.training
    losses: dict[str, tuple[Loss, tuple[str, ...]]] = {
        "cross_entropy": (cross_entropy, ("sigmoid",)),
        "squared_error": (partial(squared_error, activation=cfg.activation), (cfg.activation,)),
        "rib": (partial(rib_loss, margin=cfg.margin), ("none",)),
        "rib_signed": (partial(signed_rib_loss, margin=cfg.margin), ("none",)),
    }
    if cfg.loss not in losses:
        raise ConfigError(f"expected bottleneck.training.loss {' | '.join(losses)}, got {cfg.loss!r}")
    last_activation(cfg.activation)
    loss, activations = losses[cfg.loss]
    if cfg.activation not in activations:
        raise ConfigError(
            f"bottleneck.training.loss={cfg.loss} has the last activation {activations[0]}, got "
            f"bottleneck.training.activation={cfg.activation}; squared_error takes any"
        )
    return loss


def train_network(context: Context, artefact: Artefact, digits: Digits, seed: int) -> ToyNet:
    """One network on its seed's images; one that diverges is kept as it is, it counts as diverged."""
    cfg = context.cfg.bottleneck
    pl.seed_everything(seed, workers=True, verbose=False)
    toy = toy_images(digits, cfg.images.train, cfg.marked, seed, "train")
    network = ToyNet()
    trainer = single_trainer(
        context, f"toy_networks-{seed}", artefact, max_epochs=cfg.training.epochs, enable_checkpointing=False
    )
    module = ToyModule(network, training_loss(context), cfg.training.lr)
    trainer.fit(module, ToyBatches(toy, cfg.training.batch_size, seed))
    finish_loggers()  # a run per seed
    return network


def single_trainer(context: Context, name: str, artefact: Artefact, **kwargs: Any) -> pl.Trainer:
    """The configured Trainer on one device: the networks are too small to be shared out."""
    return context.trainer(
        name, artefact.folder, devices=1, num_nodes=1, strategy="auto", log_every_n_steps=1, **kwargs
    )
