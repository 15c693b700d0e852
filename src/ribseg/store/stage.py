"""The base class of stages: name, dependencies of the result, artefact, and the work itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from ribseg.pipeline.recipe.context import Context
from ribseg.store.artefact import Artefact
from ribseg.store.digest import settings_of

# Sections of the configuration that every training depends on, in addition to its own and `callbacks`.
TRAINING = ("data", "trainer", "seed", "tf32")
# Settings of the data for training crops, for views, and for batches and evaluation.
CROPS = ("data.crop_size", "data.resize_long")
VIEWS = ("data.scales", "data.max_side")
NOT_FOR_MAPS = ("data.batch_size", "data.eval_splits")


class Stage(ABC):
    """A step of a run, whose result is kept in the store.

    Attributes:
        name: as in `run=[...]`.
        kind: names its folder in the store; stages of one kind differ in their inputs only.
        version: to be raised when a change of the code changes the result for equal settings.
        parts: sections of the configuration that the result depends on, see `ribseg.store.digest`.
        neutral: settings in them that cannot change the result, as "data.batch_size".
        needs: names of the stages whose artefacts it reads.
        reads_data: whether it, or a stage that it needs, reads the configured data set.
        in_shards: whether it makes a file for each image on its own, so that `shard=3/16` makes a part of it.
            Its `work` then makes the part that `Context.share` gives, and its facts are not kept.
    """

    name: str
    kind: str
    version: int = 1
    parts: tuple[str, ...]
    neutral: tuple[str, ...] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    reads_data: ClassVar[bool] = True
    in_shards: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Sets the kind of a class with a name to that name."""
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls) and "kind" not in vars(cls):
            cls.kind = cls.name

    def wanted(self, context: Context) -> bool:
        """Whether it is planned in this run; otherwise it is neither run nor reported."""
        return True

    def required(self, context: Context) -> tuple[str, ...]:
        """Names of the stages whose artefacts it reads with these settings."""
        return self.needs

    def inputs(self, context: Context) -> dict[str, Artefact]:
        """Kind -> artefact that it reads; by kind, so that digests are equal in different chains."""
        read = (context.artefacts[name] for name in self.required(context))
        return {artefact.stage: artefact for artefact in read}

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether a finished artefact still has the files that other stages read."""
        return True

    def settings(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that its result depends on, as plain values."""
        return settings_of(cfg, self.parts, self.neutral)

    @abstractmethod
    def data(self, context: Context) -> str:
        """Fingerprint of the images, labels and masks that it reads."""

    def artefact(self, context: Context) -> Artefact:
        """Its artefact in the store, from version, settings, inputs and data; computes nothing."""
        settings, inputs = self.settings(context.cfg), self.inputs(context)
        return context.store.artefact(self.kind, settings, inputs, self.data(context), self.version)

    @abstractmethod
    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Computes what is missing in the artefact's folder; returns facts for its manifest."""


class ImageStage(Protocol):
    """A stage whose images an engine may have made elsewhere, see `ribseg.pipeline.recipe.engines`."""

    name: str

    def module(self, context: Context, artefact: Artefact) -> Any:
        """What `predict` needs and several calls can share."""

    def missing(self, artefact: Artefact, ids: Sequence[str]) -> list[str]:
        """Those of the images that have no file yet."""

    def predict(self, context: Context, artefact: Artefact, ids: Sequence[str], module: Any = None) -> None:
        """Makes the files of images, with a given `module` or one of its own."""
