"""Where the files of single images are made: in the processes of the run, or by a cluster.

An engine of one's own is a class with the methods of `Engine`, set by `engine._target_`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ribseg.workers import ordered_map, worker_count

if TYPE_CHECKING:
    from ribseg.pipeline.recipe.context import Context
    from ribseg.store.artefact import Artefact
    from ribseg.store.stage import ImageStage

Job = tuple[Any, ...]  # image id, input files, and last the output file


class Engine(Protocol):
    """What stages that make files image by image ask for.

    All that they hand over can be pickled, results are files, and a file that exists is not made again: so
    whatever was lost can simply be asked for a second time.
    """

    def start(self) -> None:
        """Gets ready before the first stage, in the first process: what cannot work ends the run now."""

    def predict(
        self, context: "Context", stage: "ImageStage", artefact: "Artefact", ids: Sequence[str]
    ) -> None:
        """Lets the stage's `predict` make the files of images; called in all processes of the run."""

    def map(self, context: "Context", work: Callable[[Job], None], jobs: Sequence[Job]) -> Iterator[None]:
        """Yields after each job that is done; called in the first process of the run."""


class LocalEngine:
    """Makes them here: `predict` by the processes of the Trainer, `map` by `refine.workers` processes."""

    def start(self) -> None:
        """Does nothing."""

    def predict(
        self, context: "Context", stage: "ImageStage", artefact: "Artefact", ids: Sequence[str]
    ) -> None:
        """Lets the stage predict."""
        stage.predict(context, artefact, ids)

    def map(self, context: "Context", work: Callable[[Job], None], jobs: Sequence[Job]) -> Iterator[None]:
        """Does the jobs in processes; in this one if they are so few that starting others takes longer."""
        workers = worker_count(context.cfg.refine.workers)
        return ordered_map(work, jobs, workers if len(jobs) >= 2 * workers else 1)
