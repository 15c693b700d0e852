"""The classifier stage: trains it, or loads a checkpoint."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from ribseg.errors import ConfigError
from ribseg.models import Classifier, load_classifier, load_official_classifier
from ribseg.models.classifier import described
from ribseg.models.described import write_described
from ribseg.pipeline.recipe.build import build, named_callbacks
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.training import check_finite, fit, weights_file
from ribseg.store.artefact import Artefact
from ribseg.store.stage import TRAINING, VIEWS, Stage

CHECKPOINTS = ("checkpoint", "official_checkpoint")  # settings for a trained classifier


class ClassifierStage(Stage):
    """Trains the classifier, or loads a trained one."""

    name = "classifier"
    parts = ("classifier", "callbacks", *TRAINING)
    neutral = (*VIEWS, "data.eval_splits")

    def data(self, context: Context) -> str:
        """The training images; with callbacks all images, because callbacks may act on validation scores."""
        acting = named_callbacks(context.cfg, self.name)
        return (context.data if acting else context.data.train).fingerprint(masks=False)

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether the weights exist."""
        return weights_file(artefact, self.name).is_file()

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Trains, resuming after the last finished epoch, or loads the given checkpoint."""
        given = given_checkpoint(context)
        if given:
            classifier, left_out = loaded_checkpoint(context)
            context.on_first(lambda: save(context, artefact, classifier))
            return {given: Path(context.cfg.classifier[given]).name, "left_out": left_out}
        pl.seed_everything(context.cfg.seed, workers=True, verbose=False)
        classifier = new_classifier(context)
        module = build(context.cfg.classifier.module, classifier=classifier)
        facts = fit(context, artefact, self.name, module, context.cfg.classifier.epochs, context.data)
        lr = context.cfg.classifier.module.get("lr")
        check_finite(artefact, classifier.parameters(), "classifier.module.lr", lr)
        context.on_first(lambda: save(context, artefact, classifier))
        return facts


def save(context: Context, artefact: Artefact, classifier: nn.Module) -> None:
    """Writes the weights, with the metadata that `ribseg.load` needs if it is a `Classifier`."""
    about: dict[str, Any] = {"kind": "weights"}
    if isinstance(classifier, Classifier):
        about = described(classifier, context.data.classes, context.data.mean, context.data.std)
    write_described(weights_file(artefact, artefact.stage), about, classifier.state_dict())


def new_classifier(context: Context, pretrained: bool | None = None) -> Classifier:
    """The configured classifier for the classes of the data.

    Args:
        context: of the run.
        pretrained: False builds it without pretrained weights, if others are loaded afterwards.
    """
    cfg = context.cfg.classifier.model
    known = {"pretrained": pretrained, "weights": None}
    # A network of the user's own need not have these settings.
    extra = {} if pretrained is None else {name: known[name] for name in known if name in cfg}
    return build(cfg, num_classes=context.data.num_classes, _convert_="all", **extra)


def trained_classifier(context: Context) -> Classifier:
    """The classifier with the weights of the classifier stage, or of the given checkpoint."""
    if given_checkpoint(context):
        return loaded_checkpoint(context)[0]
    classifier = new_classifier(context, pretrained=False)
    load_classifier(classifier, weights_file(context.artefacts["classifier"], "classifier"))
    return classifier


def given_checkpoint(context: Context) -> str | None:
    """The setting that gives a checkpoint to use instead of training; None if none does.

    Raises:
        ConfigError: both do.
    """
    given = [name for name in CHECKPOINTS if context.cfg.classifier.get(name)]
    if len(given) > 1:
        raise ConfigError(f"classifier.{' and classifier.'.join(given)} exclude each other; give one of them")
    return given[0] if given else None


def loaded_checkpoint(context: Context) -> tuple[Classifier, list[str]]:
    """The classifier from the given checkpoint, and the names of the file's entries that were ignored.

    Raises:
        ConfigError: the file cannot be read, or does not match the network or the classes.
    """
    cfg, number = context.cfg.classifier, context.data.num_classes
    if given_checkpoint(context) == "checkpoint":
        classifier = new_classifier(context, pretrained=False)
        return classifier, load_classifier(classifier, cfg.checkpoint)
    classifier = load_official_classifier(cfg.official_checkpoint)
    if classifier.num_classes != number:
        raise ConfigError(
            f"{cfg.official_checkpoint} knows {classifier.num_classes} classes, but the data has {number}"
        )
    return classifier, []
