"""The base classes of stages: what a result depends on, its artefact, checks before a run, the work."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ribseg.store.artefact import Artefact, Store
from ribseg.store.digest import Resolve, counting


class Shared(Protocol):
    """What the stages of a run share, at least.

    Attributes:
        store: of their results.
        resolve: see `ribseg.store.digest.Resolve`.
    """

    @property
    def store(self) -> Store: ...  # noqa: D102
    @property
    def resolve(self) -> Resolve: ...  # noqa: D102


S = TypeVar("S", bound=Shared)


class Stage(ABC, Generic[S]):
    """A step of a run, whose result is kept in the store.

    Args:
        session: what the stages of a run share.

    Attributes:
        name: as in `run=[...]`.
        version: to be raised when a change of the code changes the result for equal settings.
        reads_data: whether it, or a stage that it reads, reads the configured data set.
        sections: of the configuration, whose `_target_`s are imported before anything else.
        files: names of files that its finished artefact has.
    """

    name: str
    version: int = 1
    reads_data: ClassVar[bool] = True
    sections: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[tuple[str, ...]] = ()

    def __init__(self, session: S) -> None:
        self.session = session

    @property
    def kind(self) -> str:
        """Names its folder in the store; stages of one kind differ in their inputs only."""
        return self.name

    def wanted(self) -> bool:
        """Whether it is planned in this run; otherwise it is neither run nor reported."""
        return True

    def inputs(self) -> "Sequence[Stage[S]]":
        """The stages whose artefacts it reads with these settings."""
        return ()

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that its result depends on, as nested plain values."""

    @abstractmethod
    def data(self) -> str:
        """Fingerprint of the images, labels and masks that it reads."""

    @cached_property
    def artefact(self) -> Artefact:
        """Its artefact in the store, from version, settings, inputs and data; computes nothing.

        Inputs go by kind, so that digests are equal in different chains.
        """
        inputs = {stage.kind: stage.artefact for stage in self.inputs()}
        settings = counting(self.settings(), self.session.resolve)
        return self.session.store.artefact(self.kind, settings, inputs, self.data(), self.version)

    def check(self) -> None:
        """Raises a RibsegError if settings or data cannot work; is called before the first stage of a run.

        What it has built is kept for `work`.
        """

    def complete(self, artefact: Artefact) -> bool:
        """Whether an artefact, finished by its manifest, still has the files that others read."""
        return all((artefact.folder / name).is_file() for name in self.files)

    @abstractmethod
    def work(self, target: Artefact) -> dict[str, Any]:
        """Computes what is missing in the target's folder; returns facts for its manifest."""


class ImageStage(Stage[S]):
    """A stage that makes a file for each image on its own: in parts, by shards and by other machines."""

    @abstractmethod
    def ids(self) -> Sequence[str]:
        """Ids of all its images."""

    @abstractmethod
    def missing(self, target: Artefact, ids: Sequence[str]) -> list[str]:
        """Those of the images whose files are not there yet."""

    def prepare(self) -> None:
        """Builds what the making of all images shares, before they are divided among processes."""

    @abstractmethod
    def make(self, target: Artefact, ids: Sequence[str]) -> None:
        """Makes the files of images; may be repeated."""

    def complete(self, artefact: Artefact) -> bool:
        """Whether no file is missing."""
        return super().complete(artefact) and not self.missing(artefact, self.ids())

    def work(self, target: Artefact) -> dict[str, Any]:
        """Does what needs the files of all images; returns facts for the manifest."""
        return {}
