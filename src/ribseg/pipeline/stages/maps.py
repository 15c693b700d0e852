"""The stages that make localization maps, one for each method of the configuration."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, ClassVar, get_args

import pytorch_lightning as pl
from torch import nn

from ribseg.checks import SettingError
from ribseg.data.feed.references import ReferenceBatches
from ribseg.data.io.maps import read_records
from ribseg.errors import ConfigError
from ribseg.files import missing_ids
from ribseg.methods.base import takes
from ribseg.modules import LocalizationModule
from ribseg.modules.callbacks import MapWriter, Threads
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import Entry, entries
from ribseg.pipeline.recipe.training import check_complete
from ribseg.pipeline.stages.classifier import trained_classifier
from ribseg.pipeline.stages.decoded_images import decoded_images
from ribseg.pipeline.stages.learning_rate import searched_rate
from ribseg.pipeline.stages.prepared import prepared
from ribseg.store.artefact import Artefact
from ribseg.store.digest import contents, with_sources
from ribseg.store.stage import CROPS, NOT_FOR_MAPS, Stage
from ribseg.types import Stop


class MapStage(Stage):
    """Makes the localization maps of all images; subclasses supply the module."""

    parts: tuple[str, ...] = ("data", "maps", "trainer", "tf32")
    neutral: tuple[str, ...] = (*CROPS, *NOT_FOR_MAPS)
    needs: ClassVar[tuple[str, ...]] = ("classifier",)
    in_shards: ClassVar[bool] = True
    scales: ClassVar[tuple[float, ...] | None] = None  # of the views; None for data.scales

    def data(self, context: Context) -> str:
        """All images and labels."""
        return context.data.fingerprint(masks=False)

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether all maps exist."""
        return not self.missing(artefact, context.data.all_ids)

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Makes the missing maps."""
        ids = context.share(context.data.all_ids)
        missing = context.agree(self.missing(artefact, ids))
        if missing:
            number = len(ids)
            if len(missing) < number:
                context.console.say(f"  resuming: {number - len(missing)} of {number} images are done")
            context.engine.predict(context, self, artefact, missing)
            context.wait()
            check_complete(self.missing(artefact, ids), number, f"maps in {artefact.folder}")
        return summarize(read_records(artefact.folder))

    def predict(
        self,
        context: Context,
        artefact: Artefact,
        ids: Sequence[str],
        module: pl.LightningModule | None = None,
    ) -> None:
        """Makes the maps of images by the Trainer.

        Args:
            context: of the run.
            artefact: gets the files.
            ids: of the images.
            module: as `module` gives it, if it is there already.
        """
        writer = MapWriter(artefact.folder, context.cfg.maps.full, context.records)
        callbacks = [writer, Threads(context.cfg.maps.threads)]
        made = self.module(context, artefact) if module is None else module
        trainer = context.trainer(self.name, artefact.folder, callbacks, inference_mode=False)
        loader = context.data.prediction_loader(ids, self.scales, context.processes)
        trainer.predict(made, loader, return_predictions=False)

    def missing(self, artefact: Artefact, ids: Sequence[str]) -> list[str]:
        """Those of the images that have no maps."""
        return missing_ids(artefact.folder / "maps", ids, ".npz")

    @abstractmethod
    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """The LightningModule that makes the maps."""


class MethodStage(MapStage):
    """Makes the maps of a method of the configuration.

    Args:
        entry: of `methods`.
    """

    version = 2  # added: small maps after each step
    parts = (*MapStage.parts, "seed", "rate_search")

    def __init__(self, entry: Entry) -> None:
        self.entry, self.name, self.kind = entry, entry.name, entry.name
        # Reference images are cropped as in training.
        self.neutral = NOT_FOR_MAPS if entry.references else MapStage.neutral

    def required(self, context: Context) -> tuple[str, ...]:
        """The classifier, unless the method is made without."""
        return () if self.entry.without_classifier else self.needs

    def settings(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of the learning rate search count only with lr=auto."""
        entry = entries(cfg)[self.name]
        settings = super().settings(cfg) | {"method": contents(entry.settings)}
        if not entry.searches_rate:
            del settings["rate_search"]
        return with_sources(settings)

    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """The `LocalizationModule`; the learning rate of lr=auto, and what the method learns, come first."""
        classifier = None if self.entry.without_classifier else trained_classifier(context)
        references = references_of(context, self.entry, classifier)

        def make(lr: float | None = None, inner: bool = False) -> LocalizationModule:
            return localization_module(context, self.entry, classifier, references, lr, inner)

        lr = None
        if self.entry.searches_rate:
            lr = searched_rate(context, self.entry, lambda rate: make(rate, inner=True))
        return prepared(context, self.entry, partial(make, lr))


def localization_module(
    context: Context,
    entry: Entry,
    classifier: nn.Module | None,
    references: ReferenceBatches | None = None,
    lr: float | None = None,
    inner: bool = False,
) -> LocalizationModule:
    """The module that makes the maps of a method.

    Args:
        context: of the run.
        entry: of `methods`.
        classifier: the trained network; None for a method that is made without.
        references: for methods that take reference images.
        lr: replaces `lr=auto`.
        inner: use only the method that the entry wraps.
    """
    method = entry.build(classifier, lr, inner, context.data.classes)
    check_loss_views(entry, method, len(context.cfg.data.scales))
    if entry.references and not takes(method, "references"):
        raise ConfigError(
            f"{entry.path}.references={entry.references} would have no effect: the method takes no references"
        )
    return LocalizationModule(
        classifier, method, references, entry.name, context.cfg.seed, context.cfg.maps.steps_side
    )


def references_of(context: Context, entry: Entry, classifier: nn.Module | None) -> ReferenceBatches | None:
    """Batches of `entry.references` reference images; None for 0, or if they would not change the maps."""
    if not entry.references:
        return None
    method = entry.build(classifier, 1.0, classes=context.data.classes)  # with lr=auto any rate will do here
    if not getattr(method, "uses_references", True):
        context.console.say("  no reference images are loaded: they would not change the maps of this method")
        return None
    pool = decoded_images(context)
    return context.data.references(entry.references, pool=pool)


def mean_over_steps(series: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each step over the images that reached it.

    >>> mean_over_steps([[1.0, 2.0], [3.0]])
    [2.0, 2.0]
    """
    columns = zip_longest(*series)
    known = ([value for value in column if value is not None] for column in columns)
    return [sum(values) / len(values) for values in known]


def check_loss_views(entry: Entry, method: Any, views: int) -> None:
    """Raises a SettingError if the loss uses a view that data.scales does not have."""
    looked_at = getattr(getattr(method, "method", method), "loss_views", ())
    if max(looked_at, default=0) >= views:
        raise SettingError(
            f"{entry.path}.loss_views: expected places below {views}, as many as data.scales has, got "
            f"{list(looked_at)}"
        )


def summarize(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics of the adaptation over all images: "adaptation" in `results.json`.

    Images without a class are not adapted and count in "images" and "without_class" only.
    """
    adapted = [record for record in records.values() if record["classes"] > 0]
    stopped = Counter(record["stopped"] for record in adapted)
    number = max(len(adapted), 1)
    return {
        "images": len(records),
        "without_class": len(records) - len(adapted),
        "steps_mean": sum(record["steps"] for record in adapted) / number,
        "stopped": {rule: stopped[rule] for rule in get_args(Stop)},
        "logits": mean_over_steps([record.get("logits", []) for record in adapted]),
        "areas": mean_over_steps([record.get("areas", []) for record in adapted]),
        "seconds_per_image": sum(record["seconds"] for record in adapted) / number,
    }
