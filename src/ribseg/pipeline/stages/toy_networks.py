"""The training stage of the toy experiment: one network per seed."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback

from ribseg.data.demo.digits import (
    Digits,
    ToyBatches,
    digits_fingerprint,
    read_digits,
    split_digits,
    toy_images,
)
from ribseg.errors import ConfigError
from ribseg.functional.activations import last_activation
from ribseg.functional.losses import Loss, cross_entropy, rib_loss, signed_rib_loss, squared_error
from ribseg.models import ToyNet
from ribseg.modules.callbacks import Threads
from ribseg.modules.toy import ToyModule
from ribseg.pipeline.recipe.console import quiet_lightning
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.loggers import finish_loggers
from ribseg.pipeline.recipe.training import save_state
from ribseg.store.artefact import Artefact
from ribseg.store.stage import Stage
from ribseg.workers import ordered_map, worker_count

WEIGHTS = "network.pt"
SeedWork = Callable[[Context, Artefact, int], None]


class ToyNetworksStage(Stage):
    """Trains the toy network once per seed."""

    name = "toy_networks"
    parts = ("bottleneck", "callbacks", "trainer", "seed", "tf32")
    neutral = tuple(
        f"bottleneck.{name}"
        for name in (
            *("split", "images.measured", "images.scored", "rib", "activation", "wrong_class", "gradient"),
            *("final", "saturation", "information_bins", "examples"),
        )
    )
    reads_data = False

    def data(self, context: Context) -> str:
        """The digits."""
        return digits_fingerprint(toy_digits(context))

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether the weights of all seeds exist."""
        return all(network_path(artefact, seed).is_file() for seed in seeds(context))

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Trains the missing networks."""
        missing = [seed for seed in seeds(context) if not network_path(artefact, seed).is_file()]
        context.on_first(lambda: for_seeds(context, artefact, train_network, missing))
        return {}


def seeds(context: Context) -> range:
    """The seeds of the networks."""
    return range(context.cfg.seed, context.cfg.seed + context.cfg.bottleneck.seeds)


def toy_digits(context: Context) -> Digits:
    """The configured handwritten digits."""
    return read_digits(context.cfg.bottleneck.mnist_root)


def network_path(artefact: Artefact, seed: int) -> Path:
    """The file of a seed's weights."""
    return artefact.folder / f"seed-{seed}" / WEIGHTS


def training_loss(context: Context) -> Loss:
    """The configured training loss.

    Raises:
        ConfigError: unknown loss, or one that does not go with the configured activation.
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


def for_seeds(context: Context, artefact: Artefact, work: SeedWork, chosen: Sequence[int]) -> None:
    """Calls `work` for some seeds, in `bottleneck.workers` processes.

    Each seed uses one thread, so that results do not depend on the number of cores; for networks this small
    parallel seeds are faster than parallel threads.
    """
    workers = min(worker_count(context.cfg.bottleneck.workers), len(chosen))
    shared = (context.cfg, context.output, context.artefacts, artefact, work)
    one = partial(_in_process, *shared) if workers > 1 else partial(_timed, work, context, artefact)
    times = ordered_map(one, chosen, workers)
    if workers > 1:  # else each seed shows its own progress
        times = context.track(times, "Seeds", len(chosen), "seed")
    for seed, seconds in zip(chosen, times, strict=True):
        context.console.say(f"  seed {seed}: {seconds:.0f} s")


def _in_process(
    cfg: DictConfig,
    output: Path,
    artefacts: dict[str, Artefact],
    artefact: Artefact,
    work: SeedWork,
    seed: int,
) -> float:
    """Does the work of one seed in a worker process, without a progress bar; returns the seconds."""
    quiet_lightning()
    quiet = OmegaConf.merge(cfg, {"progress": False})
    assert isinstance(quiet, DictConfig)
    return _timed(work, Context(quiet, output, artefacts), artefact, seed)


def _timed(work: SeedWork, context: Context, artefact: Artefact, seed: int) -> float:
    start = time.perf_counter()
    work(context, artefact, seed)
    return time.perf_counter() - start


def train_network(context: Context, artefact: Artefact, seed: int) -> None:
    """Trains and saves the network of a seed; a diverged one is kept and counted as such."""
    cfg = context.cfg.bottleneck
    digits = split_digits(toy_digits(context), "train")
    pl.seed_everything(seed, workers=True, verbose=False)
    toy = toy_images(digits, cfg.images.train, cfg.marked, seed, "train")
    network = ToyNet()
    trainer = single_trainer(
        context,
        f"toy_networks-{seed}",
        artefact,
        tuple(context.callbacks("bottleneck").values()),
        max_epochs=cfg.training.epochs,
        enable_checkpointing=False,
    )
    module = ToyModule(network, training_loss(context), cfg.training.lr)
    trainer.fit(module, ToyBatches(toy, cfg.training.batch_size, seed))
    finish_loggers()  # a run per seed
    save_state(network, network_path(artefact, seed))


def single_trainer(
    context: Context, name: str, artefact: Artefact, callbacks: Sequence[Callback] = (), **kwargs: Any
) -> pl.Trainer:
    """The configured Trainer on one device and one thread: the networks are too small for more."""
    return context.trainer(
        name,
        artefact.folder,
        [Threads(1), *callbacks],
        devices=1,
        num_nodes=1,
        strategy="auto",
        log_every_n_steps=1,
        **kwargs,
    )
