"""Runs of stages: each result is computed once, whatever was killed, is shared, or runs at the same time.

What is in the store is not computed again unless `rerun` asks for it; a killed run's rest is completed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeVar

from ribseg.checks import check_number
from ribseg.errors import ConfigError
from ribseg.store.artefact import MANIFEST, Artefact
from ribseg.store.locks import locked, locked_part
from ribseg.store.shards import Shard
from ribseg.store.stage import ImageStage, Stage
from ribseg.store.usage import Usage
from ribseg.workers import forks, ordered_map, threads_per_process, worker_count

T = TypeVar("T")


class Say(Protocol):
    """Prints a line, with the name of what it is about before it."""

    def __call__(self, text: str, name: str = "", style: str = "bold") -> None: ...  # noqa: D102


class Group:
    """The processes of a run: one. See `ribseg.pipeline.recipe.processes` for several.

    Attributes:
        running: name of the stage that runs, or ran last, for messages.
    """

    running = "run"

    @property
    def first(self) -> bool:
        """Whether this is the process that decides, prints, and writes what all need."""
        return True

    @property
    def connected(self) -> bool:
        """Whether the others can be waited for."""
        return False

    def agree(self, value: T) -> T:
        """The value of the first process, in all of them."""
        return value

    def agree_to_wait(self, held: bool) -> bool:
        """Whether the first process holds a lock, in all of them; else they ask again.

        Raises:
            RibsegError: they cannot wait for it together.
        """
        return self.agree(held)

    def wait(self) -> None:
        """Waits until all processes are here."""

    def on_first(self, work: Callable[[], object]) -> None:
        """Calls `work` in the first process; the others wait."""
        if self.first:
            work()
        self.wait()


class Engine(Protocol):
    """Makes the files of single images, here or elsewhere.

    A file that exists is not made again: so whatever was lost can simply be asked for a second time.
    """

    def start(self) -> None:
        """Gets ready before the first stage, in the first process: what cannot work ends the run now."""

    def make(self, stage: ImageStage[Any], target: Artefact, ids: Sequence[str]) -> None:
        """Makes the files of a stage's images; is called in all processes of the run."""


class LocalEngine:
    """Lets the cores of this machine make them, each its own images, with one thread each.

    The processes are copies of this one, with all that it has built. With a GPU, on systems without such
    copies, and where a Trainer of several processes divides the images, the stage makes them in this process.

    Args:
        processes: their number; "auto" for as many as the cores have room for.

    Raises:
        SettingError: the number is out of range.
    """

    def __init__(self, processes: int | str = "auto") -> None:
        check_number("engine.processes", processes, low=1, whole=True, words=("auto",))
        self.processes = processes

    def start(self) -> None:
        """Does nothing."""

    def make(self, stage: ImageStage[Any], target: Artefact, ids: Sequence[str]) -> None:
        """Divides images among processes; those of one that was killed are made again."""
        session, number = stage.session, min(worker_count(self.processes), len(ids))
        if number == 1 or not forks() or session.processes > 1:
            stage.make(target, ids)
            return
        stage.prepare()
        session.say(f"  {number} processes, {threads_per_process()} threads each", "")
        work = partial(_make_part, stage, target)
        with closing(ordered_map(work, parts(ids, number), number)) as done:
            for _ in session.track(chain.from_iterable(done), f"Predicting {stage.name}", len(ids)):
                pass


def parts(ids: Sequence[str], processes: int) -> Iterator[Sequence[str]]:
    """Yields parts of the images, smaller ones at the end, so that all processes end at about the same time.

    >>> [len(part) for part in parts("abcdefghijkl", 2)]
    [3, 2, 1, 1, 1, 1, 1, 1, 1]
    """
    while ids:
        number = min(max(1, len(ids) // (2 * processes)), 8)
        yield ids[:number]
        ids = ids[number:]


def _make_part(stage: ImageStage[Any], target: Artefact, ids: Sequence[str]) -> Sequence[str]:
    """Makes a part of the images in a process of its own."""
    stage.session.part()
    stage.make(target, ids)
    return ids


class Run:
    """The stages of a run: which of them are computed, and computing them.

    Args:
        stages: all stages, each after those that it reads.
        chosen: names of those that are computed; `leave_to_last_call` removes some.
        rerun: names of those that are computed although the store holds their results.
        shard: the part of the images that is made in this call; None for all.
        group: the processes of the run.
        engine: makes the files of single images.
        say: prints a line.
        usage: counts what a stage costs.
        close: is called when the work of a stage has ended, however it did.

    Attributes:
        planned: name -> stage, of those that are wanted.
        again: names of the stages that remain to be computed again.
    """

    def __init__(
        self,
        stages: Sequence[Stage[Any]],
        chosen: list[str],
        rerun: Iterable[str] = (),
        *,
        shard: Shard | None = None,
        group: Group | None = None,
        engine: Engine | None = None,
        say: Say = lambda text, name="", style="": None,
        usage: Usage | None = None,
        close: Callable[[], object] = lambda: None,
    ) -> None:
        self.stages, self.chosen, self.rerun, self.shard = stages, chosen, set(rerun), shard
        self.group, self.engine = group or Group(), engine or LocalEngine(1)
        self.say, self.usage, self.close = say, usage or Usage(), close
        self.planned: dict[str, Stage[Any]] = {}
        self.again: set[str] = set()

    def is_ready(self, stage: Stage[Any]) -> bool:
        """Whether the store holds the result of a stage, and this run does not compute it again."""
        return stage.name in self.planned and stage.artefact.finished and stage.name not in self.again

    def computes(self, stage: Stage[Any]) -> bool:
        """Whether this run computes the result of a stage."""
        return stage.name in self.chosen and not self.is_ready(stage)

    def plan(self, stages: Iterable[Stage[Any]]) -> None:
        """Plans the wanted stages; a result that lacks files counts as not finished."""
        stages = list(stages)
        for stage in stages:
            if stage.wanted():
                self.planned[stage.name] = stage
                if stage.name in self.rerun or self.again & {each.name for each in stage.inputs()}:
                    self.again.add(stage.name)
                self._drop_incomplete(stage)
        self._begin_again()
        for stage in stages:
            self._check_inputs(stage)

    def adopt(self, artefacts: Mapping[str, Artefact]) -> None:
        """Takes stages as planned, with artefacts of another process or an earlier run."""
        for stage in self.stages:
            if stage.name in artefacts:
                stage.artefact = artefacts[stage.name]
                self.planned[stage.name] = stage

    def check(self) -> None:
        """Checks the chosen stages, before the first of them is computed."""
        for stage in self.planned.values():
            if stage.name in self.chosen:
                stage.check()
        if any(isinstance(stage, ImageStage) and self.computes(stage) for stage in self.planned.values()):
            self.group.on_first(self.engine.start)

    def compute(self) -> None:
        """Computes the chosen stages that are not in the store."""
        if self.shard is not None:
            self.leave_to_last_call(self.shard)
        for stage in self.planned.values():
            if stage.name in self.chosen and not self._in_store(stage):
                self.group.running = stage.name
                with self._locked(stage):
                    self._drop_replaced(stage)
                    if not self._in_store(stage):  # another run may have computed it meanwhile
                        self._compute(stage)

    def leave_to_last_call(self, shard: Shard) -> None:
        """Removes what needs more than a shard's part of the images from the chosen, and what is no stage.

        Raises:
            ConfigError: no chosen stage can be made in shards, or a result would have to be made again.
        """
        chosen = [stage for stage in self.planned.values() if stage.name in self.chosen]
        if not any(isinstance(stage, ImageStage) for stage in chosen):
            raise ConfigError(
                f"shard={shard} would have no effect: none of run=[{','.join(self.chosen)}] makes "
                "something for each image; leave it out, or add cam, rib or another method"
            )
        partial: set[str] = set()  # stages of which the store will not have all images
        left = []
        for stage in chosen:
            if self.group.agree(self.is_ready(stage)):
                continue
            if partial & {each.name for each in stage.inputs()}:
                left.append(stage.name)
            elif isinstance(stage, ImageStage) and (stage.name in self.again or stage.artefact.complete):
                raise ConfigError(
                    f"{stage.name} would be made again, and only as a whole: leave shard={shard} out"
                )
            if isinstance(stage, ImageStage) or stage.name in left:
                partial.add(stage.name)
        left += sorted(set(self.chosen) - {stage.name for stage in chosen})  # the report
        self.chosen[:] = [name for name in self.chosen if name not in left]
        rest = f"; left to the last call, without shard: {', '.join(left)}" if left else ""
        self.say(f"{shard}{rest}", "shard")

    def _drop_incomplete(self, stage: Stage[Any]) -> None:
        """Deletes the manifest of a finished artefact that lacks files, so that they are made again."""
        artefact = stage.artefact
        if self.group.agree(artefact.finished and not stage.complete(artefact)):
            self.say(f"files are gone from {artefact.folder}; not finished", stage.name)
            self.group.on_first(lambda: (artefact.folder / MANIFEST).unlink(missing_ok=True))

    def _begin_again(self) -> None:
        """Creates the folders in which stages are computed again.

        If some exist, an interrupted run with the same command left them: then only these stages remain to be
        computed again, not those that it had already replaced.
        """
        chosen = self.again & set(self.chosen)
        folders = {name: self.planned[name].artefact.replacement().folder for name in chosen}
        begun = {name for name, folder in folders.items() if folder.is_dir()}
        if begun:
            self.again -= chosen - begun
            return
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)  # all processes of a run may get here at once

    def _check_inputs(self, stage: Stage[Any]) -> None:
        """Raises a ConfigError if an input of a chosen stage is neither in the store nor made by this run."""
        if stage.name not in self.chosen:
            return
        absent = [s.name for s in stage.inputs() if s.name not in self.chosen and not self.is_ready(s)]
        if absent:
            raise ConfigError(
                f"stage {stage.name} needs {', '.join(absent)}, which the store {stage.session.store.root} "
                f"does not hold for these settings; run=[{','.join([*absent, *self.chosen])}] makes it"
            )

    def _in_store(self, stage: Stage[Any]) -> bool:
        """Whether the store has the result of a stage, which is said then."""
        ready = self.group.agree(self.is_ready(stage))
        if ready:
            other = stage.artefact.other_versions
            made_by = f" (computed by {other})" if other else ""
            self.say(f"in the store, {stage.artefact.folder}{made_by}", stage.name)
        return ready

    def _locked(self, stage: Stage[Any]) -> AbstractContextManager[None]:
        """A context in which no other run computes the artefact, or this run's shard of its images."""
        folder = stage.artefact.folder
        how = (stage.name, self.say, self.group.first, self.group.agree_to_wait)
        if self.shard is not None and isinstance(stage, ImageStage):
            return locked_part(folder, self.shard.label, *how)
        return locked(folder, *how)

    def _drop_replaced(self, stage: Stage[Any]) -> None:
        """Takes a stage from those to be computed again if another run has replaced its result meanwhile."""
        replaced = stage.name in self.again and not stage.artefact.replacement().folder.is_dir()
        if self.group.agree(replaced):
            self.again.discard(stage.name)

    def _compute(self, stage: Stage[Any]) -> None:
        """Computes a stage's result, or this run's shard of it; an old one is kept until it is replaced."""
        artefact, part = stage.artefact, self.shard if isinstance(stage, ImageStage) else None
        again = self.group.agree(stage.name in self.again or artefact.complete)
        target = artefact.replacement() if again else artefact
        why = ", again" + "".join(f", as {name} was" for name in artefact.outdated_by) if again else ""
        self.say(f"{artefact.folder}{'' if part is None else f', shard {part}'}", f"{stage.name}{why}")
        self.usage.begin()
        try:
            if isinstance(stage, ImageStage):
                self._make(stage, target)
            facts = stage.work(target) if part is None else {}
        finally:
            self.close()
        line = self.usage.line(stage.name, artefact.folder)
        if part is None:
            finish = artefact.replace if again else artefact.finish
            self.group.on_first(lambda: finish(facts, self.usage.seconds, self.usage.peaks))
            self.again.discard(stage.name)
        self.say(f"  {line}")

    def _make(self, stage: ImageStage[Any], target: Artefact) -> None:
        """Makes the missing files of all images, or of the shard's."""
        ids = list(stage.ids()) if self.shard is None else self.shard.take(stage.ids())
        missing = self.group.agree(stage.missing(target, ids))
        if missing:
            if len(missing) < len(ids):
                self.say(f"  resuming: {len(ids) - len(missing)} of {len(ids)} images are done")
            target.folder.mkdir(parents=True, exist_ok=True)
            self.engine.make(stage, target, missing)
            self.group.wait()
            check_made(stage.missing(target, missing), len(ids), f"files in {target.folder}")


def check_made(missing: Sequence[str], images: int, what: str) -> None:
    """Raises a ConfigError if some of the images still lack what a stage was to make of them."""
    if missing:
        raise ConfigError(
            f"{len(missing)} of {images} images still have no {what}: does something delete them, or an "
            "engine of your own leave them out? What is there is kept"
        )
