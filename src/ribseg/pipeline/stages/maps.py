"""The stages that make localization maps, one for each method of the configuration."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest
from statistics import fmean
from typing import Any, ClassVar, get_args

import pytorch_lightning as pl
from torch import nn

from ribseg.checks import SettingError, check_number, check_switch, within
from ribseg.data.feed.references import ReferenceBatches
from ribseg.data.io.maps import read_records
from ribseg.errors import ConfigError
from ribseg.files import missing_ids
from ribseg.methods.base import Method, takes
from ribseg.methods.trial import check_method
from ribseg.modules import LocalizationModule
from ribseg.modules.callbacks import MapWriter, Threads
from ribseg.pipeline.recipe.build import build
from ribseg.pipeline.recipe.data import CROPS, PIXELS, VIEWS
from ribseg.pipeline.recipe.methods import Entry
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.stages.classifier import ClassifierStage
from ribseg.pipeline.stages.decoded_images import decoded_images
from ribseg.pipeline.stages.learning_rate import RateSearchSettings, check_rate_search, searched_rate
from ribseg.pipeline.stages.prepared import prepare
from ribseg.store.artefact import Artefact
from ribseg.store.settings import SPEED, counted, setting
from ribseg.store.sources import is_foreign
from ribseg.store.stage import ImageStage, Stage
from ribseg.types import Stop


@dataclass(frozen=True, kw_only=True)
class MapsSettings:
    """The settings `maps`."""

    pool_gib: float = setting(partial(check_number, low=0), neutral=SPEED)
    steps_side: int = setting(partial(check_number, low=0, whole=True))
    full: bool = setting(check_switch)


class MapStage(ImageStage[Session]):
    """Makes the localization maps of all images; subclasses supply the module."""

    scales: ClassVar[tuple[float, ...] | None] = None  # of the views; None for data.scales

    def map_settings(self, *used: str) -> dict[str, Any]:
        """The settings of all stages that make maps; `used` of the data."""
        common = self.session.counted("trainer", "tf32", data=(*PIXELS, *used))
        return common | {"maps": counted(self.session.settings[MapsSettings])}

    def data(self) -> str:
        """All images and labels."""
        return self.session.data.fingerprint(masks=False)

    def ids(self) -> Sequence[str]:
        """All images."""
        return self.session.data.all_ids

    def missing(self, target: Artefact, ids: Sequence[str]) -> list[str]:
        """Those of the images that have no maps."""
        return missing_ids(target.folder / "maps", ids, ".npz")

    def prepare(self) -> None:
        """Builds the module."""
        _ = self.module

    def make(self, target: Artefact, ids: Sequence[str]) -> None:
        """Makes the maps of images by the Trainer."""
        session, cfg = self.session, self.session.settings[MapsSettings]
        writer = MapWriter(target.folder, cfg.full, session.record_prefix, session.data.classes)
        callbacks = [writer, Threads()]
        trainer = session.trainer(self.name, target.folder, callbacks, logged=False, inference_mode=False)
        loader = session.data.prediction_loader(ids, self.scales, session.processes)
        trainer.predict(self.module, loader, return_predictions=False)

    def work(self, target: Artefact) -> dict[str, Any]:
        """Statistics over all images."""
        vars(self).pop("module", None)  # its memory is for others from here on
        return summarize(read_records(target.folder))

    @cached_property
    @abstractmethod
    def module(self) -> pl.LightningModule:
        """The LightningModule that makes the maps."""


class MethodStage(MapStage):
    """Makes the maps of a method of the configuration.

    Args:
        session: of the run.
        entry: of `methods`.
        classifier: the stage that trains it.
    """

    sections = ("classifier",)
    version = 2  # added: small maps after each step

    def __init__(self, session: Session, entry: Entry, classifier: ClassifierStage) -> None:
        super().__init__(session)
        self.entry, self.name, self.classifier = entry, entry.name, classifier

    def inputs(self) -> Sequence[Stage[Session]]:
        """The classifier, unless the method is made without."""
        return [] if self.entry.without_classifier else [self.classifier]

    def settings(self) -> dict[str, Any]:
        """Those of the method; of reference images, which are cropped as in training, if it draws them."""
        crops = CROPS if self.entry.references else ()
        own = {"method": self.entry.settings, "seed": self.session.cfg.seed}
        if self.entry.searches_rate:
            own["rate_search"] = counted(self.session.settings[RateSearchSettings])
        return self.map_settings(*VIEWS, *crops) | own

    def check(self) -> None:
        """Builds the method for the classifier, which need not be trained yet."""
        session, entry, network = self.session, self.entry, self.classifier.checked
        with within("pooling"):
            build(session.cfg.pooling)
        method = self.method(network, 1.0 if entry.searches_rate else None)
        if entry.searches_rate:
            with within("rate_search"):
                inner = entry.build(network, 1.0, inner=True, classes=session.data.classes)
                check_rate_search(session, inner)
        if is_foreign(str(entry.node["_target_"])):
            with within(entry.path):
                check_method(method, network, session.data.num_classes, len(session.cfg.data.scales))
        check_loss_views(entry, method, len(session.cfg.data.scales))
        if entry.references and not takes(method, "references"):
            given = f"{entry.path}.references={entry.references}"
            raise ConfigError(f"{given} would have no effect: the method takes no references")

    def method(self, network: nn.Module | None, lr: float | None = None, inner: bool = False) -> Method:
        """The method for a network; `lr` replaces lr=auto, `inner` gives the method that a control wraps."""
        return self.entry.build(network, lr, inner, self.session.data.classes)

    @cached_property
    def module(self) -> pl.LightningModule:
        """The `LocalizationModule`; the learning rate of lr=auto, and what the method learns, come first."""
        session, entry = self.session, self.entry
        network = None if entry.without_classifier else self.classifier.trained
        method = self.method(network, 1.0 if entry.searches_rate else None)
        batches = self._references(method)

        def localization(method: Method) -> LocalizationModule:
            side = session.settings[MapsSettings].steps_side
            return LocalizationModule(network, method, batches, entry.name, session.cfg.seed, side)

        if entry.searches_rate:
            lr = searched_rate(
                session,
                entry,
                self.classifier.artefact,
                make=lambda rate: localization(self.method(network, rate, inner=True)),
            )
            method = self.method(network, lr)
        module = localization(method)
        prepare(session, entry, {stage.kind: stage.artefact for stage in self.inputs()}, module)
        return module

    def _references(self, method: Method) -> ReferenceBatches | None:
        """Batches of reference images; None without, or if they would not change the maps."""
        if not self.entry.references:
            return None
        if not getattr(method, "uses_references", True):
            self.session.say(
                "  no reference images are loaded: they would not change the maps of this method"
            )
            return None
        pool = decoded_images(self.session, self.session.settings[MapsSettings].pool_gib)
        return self.session.data.references(self.entry.references, pool=pool)


def check_loss_views(entry: Entry, method: Any, views: int) -> None:
    """Raises a SettingError if the loss uses a view that data.scales does not have."""
    inner = getattr(method, "method", method)
    looked_at, views = getattr(inner, "loss_views", ()), min(views, getattr(inner, "views", None) or views)
    if max(looked_at, default=0) >= views:
        expected = (
            f"expected places below {views}, as many as there are of data.scales and {entry.path}.views"
        )
        cure = f"{entry.path}.loss_views={[*range(views)]}".replace(" ", "")
        raise SettingError(f"{entry.path}.loss_views: {expected}, got {list(looked_at)}; for all: {cure}")


def mean_over_steps(series: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each step over the images that reached it.

    >>> mean_over_steps([[1.0, 2.0], [3.0]])
    [2.0, 2.0]
    """
    columns = zip_longest(*series)
    known = ([value for value in column if value is not None] for column in columns)
    return [fmean(values) for values in known]  # exact, so that the order of shards does not matter


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
