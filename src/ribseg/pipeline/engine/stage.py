"""What a stage is: a name, what its result depends on, its place in the store, and work to do."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from ribseg.pipeline.engine.context import Context
from ribseg.pipeline.engine.digest import settings_of
from ribseg.pipeline.engine.store import Artefact

# Parts of the configuration that every training depends on, besides its own and `callbacks`.
TRAINING = ("data", "trainer", "seed", "tf32")
# Settings of the data that are about crops to learn from, about views, and about batches and scores.
CROPS = ("data.crop_size", "data.resize_long")
VIEWS = ("data.scales", "data.max_side")
NOT_FOR_MAPS = ("data.batch_size", "data.eval_splits")


class Stage(ABC):
    """A step of the chain.

    Attributes:
        name: as in `run=[...]`.
        kind: names its folder in the store; stages of one kind do the same with other inputs.
        version: raise it when a change of the code makes the result differ for equal settings.
        parts: of the configuration, on which the result depends; see `ribseg.pipeline.engine.digest`.
        neutral: settings in them that cannot change the result, as "data.batch_size".
        needs: stages whose artefacts it reads.
        reads_data: whether it, or a stage that it needs, reads the configured data set.
    """

    name: str
    kind: str
    version: int = 1
    parts: tuple[str, ...]
    neutral: tuple[str, ...] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    reads_data: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A stage whose class has a name is of that kind."""
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls) and "kind" not in vars(cls):
            cls.kind = cls.name

    def wanted(self, context: Context) -> bool:
        """Whether it has a place in this run; else it is neither run nor reported."""
        return True

    def required(self, context: Context) -> tuple[str, ...]:
        """Names of the stages whose artefacts it reads with these settings."""
        return self.needs

    def inputs(self, context: Context) -> dict[str, Artefact]:
        """The artefacts that it reads, by their kind: equal for stages of one kind in different chains."""
        read = (context.artefacts[name] for name in self.required(context))
        return {artefact.stage: artefact for artefact in read}

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether a finished artefact still holds what other stages read."""
        return True

    def settings(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """What of the configuration its result depends on, as plain values."""
        return settings_of(cfg, self.parts, self.neutral)

    @abstractmethod
    def data(self, context: Context) -> str:
        """Fingerprint of the images, labels and masks that it reads."""

    def artefact(self, context: Context) -> Artefact:
        """Its place in the store, from version, settings, inputs and data; nothing is computed."""
        settings, inputs = self.settings(context.cfg), self.inputs(context)
        return context.store.artefact(self.kind, settings, inputs, self.data(context), self.version)

    @abstractmethod
    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Does what is missing in the artefact's folder and returns facts for its manifest."""
