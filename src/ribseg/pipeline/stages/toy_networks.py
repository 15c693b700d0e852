"""The training stage of the toy experiment: one network per seed."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from ribseg.analysis.regions import check_gradient
from ribseg.checks import check_arguments, check_choice, check_number, check_switch, within
from ribseg.data.demo.digits import (
    SPLITS,
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
from ribseg.pipeline.recipe.loggers import finish_loggers
from ribseg.pipeline.recipe.session import RunSettings, Session
from ribseg.pipeline.recipe.training import check_ended, save_state
from ribseg.store.artefact import Artefact
from ribseg.store.settings import COUNT, PLACE, SHARE, counted, setting
from ribseg.store.stage import Stage
from ribseg.workers import ordered_map

WEIGHTS = "network.pt"
SeedWork = Callable[["ToyStage", Artefact, int], None]


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The settings `bottleneck.images`."""

    train: int = setting(COUNT)
    measured: int = setting(COUNT)
    scored: int = setting(COUNT)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings `bottleneck.training`."""

    epochs: int = setting(COUNT)
    batch_size: int = setting(COUNT)
    lr: float = setting()
    loss: str = setting()
    activation: str = setting()
    margin: float | None = setting(partial(check_number, words=(None,)))


@dataclass(frozen=True, kw_only=True)
class BottleneckSettings:
    """The settings `bottleneck`."""

    seeds: int = setting(COUNT)
    marked: float = setting(SHARE)
    images: ImageSettings = setting(kind=ImageSettings)
    training: TrainingSettings = setting(kind=TrainingSettings)
    split: str = setting(partial(check_choice, choices=tuple(SPLITS)))
    rib: Mapping[str, Any] = setting()
    activation: str = setting()
    gradient: Mapping[str, Any] = setting(partial(check_arguments, check_gradient))
    final: str = setting(partial(check_choice, choices=("logit", "activation")))
    saturation: float = setting(partial(check_number, low=0))
    information_bins: int | None = setting(partial(COUNT, words=(None,)))
    examples: int = setting(COUNT)
    wrong_class: bool = setting(check_switch, default=False)
    callbacks: Mapping[str, Any] | None = setting(default=None)
    mnist_root: str | None = setting(neutral=PLACE)


class ToyStage(Stage[Session]):
    """A stage of the toy experiment, which brings its own data."""

    reads_data = False

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.cfg = session.settings[BottleneckSettings]

    def data(self) -> str:
        """The digits."""
        return digits_fingerprint(self.digits())

    def digits(self) -> Digits:
        """The configured handwritten digits."""
        return read_digits(self.cfg.mnist_root)

    @property
    def seeds(self) -> range:
        """Those of the networks."""
        return range(self.session.cfg.seed, self.session.cfg.seed + self.cfg.seeds)

    def trainer(
        self, name: str, target: Artefact, callbacks: Sequence[Callback] = (), **kwargs: Any
    ) -> pl.Trainer:
        """The configured Trainer on one device and one thread: the networks are too small for more."""
        alone: dict[str, Any] = {"devices": 1, "num_nodes": 1, "strategy": "auto", "log_every_n_steps": 1}
        return self.session.trainer(name, target.folder, [Threads(1), *callbacks], **alone, **kwargs)


class ToyNetworksStage(ToyStage):
    """Trains the toy network once per seed."""

    name = "toy_networks"

    def settings(self) -> dict[str, Any]:
        """Those of the training and its images."""
        own = counted(self.cfg)
        used = {name: own[name] for name in ("seeds", "marked", "training", "callbacks")}
        images = {"train": self.cfg.images.train}
        common = self.session.counted("callbacks", "trainer", "seed", "tf32")
        return common | {"bottleneck": used | {"images": images}}

    def complete(self, artefact: Artefact) -> bool:
        """Whether the weights of all seeds exist."""
        return all(network_path(artefact, seed).is_file() for seed in self.seeds)

    def check(self) -> None:
        """Builds the callbacks and the training."""
        self.session.callbacks("bottleneck")
        split_digits(self.digits(), "train")
        training = self.cfg.training
        with within("bottleneck.training"):
            ToyModule(ToyNet(), training_loss(training), training.lr).new_optimizer()

    def work(self, target: Artefact) -> dict[str, Any]:
        """Trains the missing networks."""
        missing = [seed for seed in self.seeds if not network_path(target, seed).is_file()]
        self.session.group.on_first(lambda: for_seeds(self, target, train_network, missing))
        return {}


def network_path(artefact: Artefact, seed: int) -> Path:
    """The file of a seed's weights."""
    return artefact.folder / f"seed-{seed}" / WEIGHTS


def training_loss(cfg: TrainingSettings) -> Loss:
    """The configured training loss.

    Raises:
        ConfigError: unknown loss, or one that does not go with the configured activation.
    """
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


def for_seeds(stage: ToyStage, target: Artefact, work: SeedWork, chosen: Sequence[int]) -> None:
    """Calls `work` for some seeds, in `engine.processes` processes.

    Each seed uses one thread, so that results do not depend on the number of cores; for networks this small
    parallel seeds are faster than parallel threads.
    """
    session, one = stage.session, partial(_timed, work, stage, target)
    workers = min(session.workers, len(chosen))
    if workers > 1:
        one = partial(_in_process, session.cfg, session.output, type(stage), target, work)
    times: Iterable[float] = ordered_map(one, chosen, workers)
    if workers > 1:  # else each seed shows its own progress
        times = session.track(times, "Seeds", len(chosen), "seed")
    for seed, seconds in zip(chosen, times, strict=True):
        session.say(f"  seed {seed}: {seconds:.0f} s")


def _in_process(
    cfg: DictConfig, output: Path, kind: type[ToyStage], target: Artefact, work: SeedWork, seed: int
) -> float:
    """Does the work of one seed in a worker process, without a progress bar; returns the seconds."""
    quiet_lightning()
    cfg.progress = False
    session = Session(cfg, output, {"": [RunSettings], "bottleneck": [BottleneckSettings]})
    return _timed(work, kind(session), target, seed)


def _timed(work: SeedWork, stage: ToyStage, target: Artefact, seed: int) -> float:
    start = time.perf_counter()
    work(stage, target, seed)
    return time.perf_counter() - start


def train_network(stage: ToyStage, target: Artefact, seed: int) -> None:
    """Trains and saves the network of a seed; a diverged one is kept and counted as such."""
    cfg, training = stage.cfg, stage.cfg.training
    digits = split_digits(stage.digits(), "train")
    pl.seed_everything(seed, workers=True, verbose=False)
    toy = toy_images(digits, cfg.images.train, cfg.marked, seed, "train")
    network = ToyNet()
    callbacks = stage.session.callbacks("bottleneck")
    trainer = stage.trainer(
        f"toy_networks-{seed}", target, callbacks, max_epochs=training.epochs, enable_checkpointing=False
    )
    module = ToyModule(network, training_loss(training), training.lr)
    trainer.fit(module, ToyBatches(toy, training.batch_size, seed))
    check_ended(trainer, f"the network of seed {seed}", training.epochs)
    finish_loggers()  # a run per seed
    save_state(network, network_path(target, seed))
