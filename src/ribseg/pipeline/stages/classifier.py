"""The classifier: trained, or taken from a file."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from ribseg.errors import ConfigError
from ribseg.models import Classifier, load_classifier, load_official_classifier
from ribseg.models.classifier import described
from ribseg.models.described import write_described
from ribseg.pipeline.engine.context import Context, build, named_callbacks
from ribseg.pipeline.engine.stage import TRAINING, VIEWS, Stage
from ribseg.pipeline.engine.store import Artefact
from ribseg.pipeline.engine.training import check_finite, fit, weights_file

CHECKPOINTS = ("checkpoint", "official_checkpoint")  # settings that name a trained classifier


class ClassifierStage(Stage):
    """Trains the classifier, or takes over a released one."""

    name = "classifier"
    parts = ("classifier", "callbacks", *TRAINING)
    neutral = (*VIEWS, "data.eval_splits")

    def data(self, context: Context) -> str:
        """The training images and labels; with callbacks the others, too, as they may act on their scores."""
        acting = named_callbacks(context.cfg, self.name)
        return (context.data if acting else context.data.train).fingerprint(masks=False)

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether the weights are there."""
        return weights_file(artefact, self.name).is_file()

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Goes on from the last finished epoch if there is one."""
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
    """Writes the weights; of our own networks with what `ribseg.load` needs."""
    about: dict[str, Any] = {"kind": "weights"}
    if isinstance(classifier, Classifier):
        about = described(classifier, context.data.classes, context.data.mean, context.data.std)
    write_described(weights_file(artefact, artefact.stage), about, classifier.state_dict())


def new_classifier(context: Context, pretrained: bool | None = None) -> Classifier:
    """The configured classifier for the classes of the data.

    Args:
        context: of the run.
        pretrained: False leaves weights that would be loaded out, for one that gets its own at once.
    """
    cfg = context.cfg.classifier.model
    known = {"pretrained": pretrained, "weights": None}
    # A network of the user's own need not have such settings.
    extra = {} if pretrained is None else {name: known[name] for name in known if name in cfg}
    return build(cfg, num_classes=context.data.num_classes, _convert_="all", **extra)


def trained_classifier(context: Context) -> Classifier:
    """The classifier that the classifier stage left."""
    if given_checkpoint(context):
        return loaded_checkpoint(context)[0]
    classifier = new_classifier(context, pretrained=False)
    load_classifier(classifier, weights_file(context.artefacts["classifier"], "classifier"))
    return classifier


def given_checkpoint(context: Context) -> str | None:
    """The setting that names a classifier which is taken instead of training; None where none does.

    Raises:
        ConfigError: both do.
    """
    given = [name for name in CHECKPOINTS if context.cfg.classifier.get(name)]
    if len(given) > 1:
        raise ConfigError(f"classifier.{' and classifier.'.join(given)} exclude each other; give one of them")
    return given[0] if given else None


def loaded_checkpoint(context: Context) -> tuple[Classifier, list[str]]:
    """The classifier that was given instead of a training, and the names of what was left out of its file.

    Raises:
        ConfigError: it cannot be read, or does not fit network or classes.
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
