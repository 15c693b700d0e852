"""The classifier stage: trains it, or loads a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytorch_lightning as pl
from torch import nn

from ribseg.checks import within
from ribseg.data.augment.seeding import share_of
from ribseg.data.class_names import class_order
from ribseg.errors import ConfigError
from ribseg.methods.trial import check_network
from ribseg.models import Classifier, load_into, load_official_classifier
from ribseg.models.classifier import described
from ribseg.models.load import NAMES
from ribseg.models.packages import PACKAGED, STATISTICS
from ribseg.models.weights_file import write_described
from ribseg.modules import ClassifierModule
from ribseg.pipeline.recipe.build import build, check_training
from ribseg.pipeline.recipe.data import CROPS, PIXELS
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.recipe.training import check_finite, fit
from ribseg.store.artefact import Artefact
from ribseg.store.settings import COUNT, counted, setting
from ribseg.store.stage import Stage
from ribseg.types import Trainable

WEIGHTS = "classifier.safetensors"


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """The settings `classifier`."""

    model: Mapping[str, Any] = setting()
    module: Mapping[str, Any] = setting()
    epochs: int = setting(COUNT)
    callbacks: Mapping[str, Any] | None = setting(default=None)
    checkpoint: str | None = setting(default=None)
    official_checkpoint: str | None = setting(default=None)

    def __post_init__(self) -> None:
        """Raises a ConfigError if two checkpoints are given."""
        if self.checkpoint and self.official_checkpoint:
            raise ConfigError(
                "checkpoint and classifier.official_checkpoint exclude each other; give one of them"
            )

    @property
    def given(self) -> str | None:
        """The file of a trained classifier, to use instead of training; None for training."""
        return self.checkpoint or self.official_checkpoint


class ClassifierStage(Stage[Session]):
    """Trains the classifier, or loads a trained one.

    Attributes:
        left_out: names of the entries of a given checkpoint that were ignored.
    """

    name = "classifier"
    sections = ("classifier",)
    files = (WEIGHTS,)

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.cfg, self.left_out = session.settings[ClassifierSettings], list[str]()

    def settings(self) -> dict[str, Any]:
        """Its own, and those of trainings."""
        used = (*CROPS, *PIXELS, "batch_size")
        common = self.session.counted("callbacks", "trainer", "seed", "tf32", data=used)
        return {"classifier": counted(self.cfg)} | common

    def data(self) -> str:
        """The training images; with callbacks all images, because callbacks may act on validation scores."""
        data = self.session.data
        return (data if self.session.callback_nodes(self.name) else data.train).fingerprint(masks=False)

    def check(self) -> None:
        """Builds the classifier and its training, and tries it on small images."""
        if self.session.run.computes(self):
            share_of(self.session.cfg.data.batch_size, self.session.processes, "data.batch_size")
            self.session.callbacks(self.name)
        _ = self.checked

    @cached_property
    def checked(self) -> Classifier:
        """The network, tried on small images; with initial weights if it is to be trained."""
        network, learns = self.network, False
        if self.left_out:
            names = ", ".join(self.left_out)
            self.session.say(f"  the classifier is taken without {names}: maps have no bias")
        check_normalization(network, self.cfg.model, self.session.cfg.data)
        if not self.cfg.given:
            learns = isinstance(self.module, ClassifierModule) and self.name in self.session.run.chosen
        check_network(network, self.session.data.num_classes, learns, adapted_part(self.session))
        return network

    @cached_property
    def network(self) -> Classifier:
        """The configured network for the classes of the data, or that of the given checkpoint.

        Raises:
            ConfigError: it cannot be built, or a file does not match the network or the classes.
        """
        cfg, number = self.cfg, self.session.data.num_classes
        with within("classifier"):
            if cfg.official_checkpoint:
                network = load_official_classifier(cfg.official_checkpoint)
                if network.num_classes != number:
                    found = f"{cfg.official_checkpoint} knows {network.num_classes} classes"
                    raise ConfigError(f"{found}, but the data has {number}")
                if number in NAMES:
                    order = class_order(NAMES[number], self.session.data.classes, cfg.official_checkpoint)
                    network.reorder(order)
                return network
        # Pretrained weights are loaded only if they will be needed; a network of one's own may have none.
        trains = not cfg.given and self.session.run.computes(self)
        others = {} if trains else {"pretrained": False, "weights": None}
        extra = {name: value for name, value in others.items() if name in cfg.model}
        pl.seed_everything(self.session.cfg.seed, workers=True, verbose=False)
        with within("classifier.model"):
            network = build(cfg.model, num_classes=number, _convert_="all", **extra)
        if cfg.checkpoint:
            with within("classifier"):
                self.left_out = load_into(network, cfg.checkpoint, self.session.data.classes)
        return network

    @cached_property
    def module(self) -> pl.LightningModule:
        """The configured training of the network."""
        return check_training("classifier.module", self.cfg.module, classifier=self.network)

    @cached_property
    def trained(self) -> Classifier:
        """The network with the weights of the result."""
        if not self.cfg.given:
            load_into(self.network, self.artefact.folder / WEIGHTS, self.session.data.classes)
        return self.network

    def work(self, target: Artefact) -> dict[str, Any]:
        """Trains, resuming after the last finished epoch, or loads the given checkpoint."""
        cfg, facts = self.cfg, dict[str, Any]()
        if cfg.given:
            kind = "checkpoint" if cfg.checkpoint else "official_checkpoint"
            facts = {kind: Path(cfg.given).name, "left_out": self.left_out}
        else:
            module = self.module
            pl.seed_everything(self.session.cfg.seed, workers=True, verbose=False)
            facts = fit(self.session, target, self.name, module, cfg.epochs, self.session.data)
            check_finite(target, self.network.parameters(), "classifier.module.lr", cfg.module.get("lr"))
        self.session.group.on_first(lambda: self._save(target))
        return facts

    def _save(self, target: Artefact) -> None:
        """Writes the weights, with the metadata that `ribseg.load` needs if it is a `Classifier`."""
        data = self.session.data
        about: dict[str, Any] = {"kind": "weights", "classes": data.classes}
        if isinstance(self.network, Classifier):
            about = described("classifier", self.network, data.classes, data.mean, data.std)
        write_described(target.folder / WEIGHTS, about, self.network.state_dict())


def adapted_part(session: Session) -> Trainable | None:
    """The part of the network that the run's methods adapt; None if unknown or none does."""
    chosen = [e.inner.get("trainable") for name, e in session.entries.items() if name in session.run.chosen]
    return next((part for part in chosen if part in get_args(Trainable)), None)


def check_normalization(classifier: nn.Module, model: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Checks that pixels are normalised as the classifier's weights expect, if that is known.

    Raises:
        ConfigError: they are not; names the settings.
    """
    backbone = getattr(classifier, "backbone", None)
    known = getattr(backbone, "pretrained_cfg", {}) if model.get("pretrained") else {}
    if model.get("weights") in PACKAGED:
        known = STATISTICS
    for name in ("mean", "std"):
        found, expected = list(data[name]), known.get(name)
        if expected and not np.allclose(found, expected, rtol=0, atol=1e-3):
            values = ",".join(f"{value:g}" for value in expected)
            raise ConfigError(
                f"the weights of {model.get('weights') or model['backbone']} expect pixels normalised with "
                f"data.{name}=[{values}], got {found}; other statistics shift every input of the network"
            )
