"""An engine on Ray: images are tasks, workers hold the classifier, a worker that dies is started again."""

import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from ribseg.checks import check_number
from ribseg.errors import ConfigError, RibsegError
from ribseg.pipeline.recipe.console import quiet_lightning
from ribseg.pipeline.recipe.engines import Job
from ribseg.store.artefact import Artefact

if TYPE_CHECKING:
    from ribseg.pipeline.recipe.context import Context
    from ribseg.store.stage import ImageStage

T = TypeVar("T")
Auto = Literal["auto"]
# Settings of the run that a worker replaces: it is one process that prints nothing and logs nothing.
ALONE = {
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "trainer.strategy": "auto",
    "progress": False,
    "logger": None,
    "shard": None,
    "engine": None,
    "check_files": False,
}


class RayEngine:
    """Makes maps, labels, walks and masks by the workers of a Ray cluster.

    The files are equal to the byte to those of one process: what is drawn for an image depends on the seed
    and the image alone, and `maps.threads` on each worker is that of the run.

    Args:
        address: of a running cluster, as Ray takes it; None starts one on this machine.
        workers: number of processes; "auto" for as many as the cluster has room for.
        num_gpus: of each worker; "auto" for 1 where the cluster has GPUs, else 0.
        num_cpus: of each worker.
        images: number of images that a worker is given at a time.
        retries: how often a worker that has died is started again, and its images made again.

    Raises:
        ConfigError: Ray is not installed, or a setting is out of range.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | Auto = "auto",
        num_gpus: float | Auto = "auto",
        num_cpus: float = 1,
        images: int = 16,
        retries: int = 3,
    ) -> None:
        check_number("engine.workers", workers, low=1, whole=True, words=("auto",))
        check_number("engine.num_gpus", num_gpus, low=0, words=("auto",))
        check_number("engine.num_cpus", num_cpus, above=0)
        check_number("engine.images", images, low=1, whole=True)
        check_number("engine.retries", retries, low=0, whole=True)
        self.address, self.workers, self.num_gpus, self.num_cpus = address, workers, num_gpus, num_cpus
        self.images, self.retries = images, retries
        _ray()

    def start(self) -> None:
        """Connects to the cluster, or starts one, and looks whether it has room for the workers.

        Raises:
            ConfigError: no cluster answers, or it has no room.
        """
        self._connect()
        self._number()

    def predict(
        self, context: "Context", stage: "ImageStage", artefact: Artefact, ids: Sequence[str]
    ) -> None:
        """Lets workers make the files of images; the first process of the run hands them out."""
        context.on_first(lambda: self._predict(context, stage, artefact, ids))

    def _predict(
        self, context: "Context", stage: "ImageStage", artefact: Artefact, ids: Sequence[str]
    ) -> None:
        from ray.util import ActorPool

        self._connect()
        artefact.folder.mkdir(parents=True, exist_ok=True)
        parts = _parts(ids, self.images)
        kind = _ray().remote(max_restarts=self.retries, max_task_retries=self.retries, **self._share())(
            Worker
        )
        run = (worker_settings(context.cfg), stage.name, context.artefacts, artefact, context.skipped)
        task = _ray().put(Task(Path.cwd(), sys.path, *run))
        number = min(self._number(), len(parts))
        actors = [kind.remote(f"ray-{index}-", task) for index in range(number)]
        pool = ActorPool(actors)
        try:
            done = pool.map_unordered(lambda actor, part: actor.make.remote(part), parts)
            images = (image_id for part in _results(done, self.retries) for image_id in part)
            for _ in context.track(images, stage.name, len(ids)):
                pass
        finally:
            for actor in actors:
                _ray().kill(actor)

    def map(self, context: "Context", work: Callable[[Job], None], jobs: Sequence[Job]) -> Iterator[None]:
        """Yields after each job that a task of Ray has done."""
        ray = _ray()
        self._connect()
        task = ray.remote(max_retries=self.retries, num_cpus=self.num_cpus)(_do)
        shared = ray.put(work)
        waiting = [task.remote(Path.cwd(), sys.path, shared, part) for part in _parts(jobs, self.images)]
        for number in _results(_as_they_end(waiting), self.retries):
            yield from [None] * number

    def _connect(self) -> None:
        ray = _ray()
        if not ray.is_initialized():
            try:
                ray.init(address=self.address, include_dashboard=None if self.address else False)
            except (ConnectionError, ValueError) as error:
                raise ConfigError(
                    f"engine.address={self.address}: no Ray cluster answers: {error}"
                ) from error

    def _share(self) -> dict[str, float]:
        """The part of the cluster that a worker takes."""
        there = _ray().cluster_resources()
        gpus = (1 if there.get("GPU") else 0) if self.num_gpus == "auto" else self.num_gpus
        return {"num_gpus": gpus, "num_cpus": self.num_cpus}

    def _number(self) -> int:
        """The number of workers that the cluster has room for, or that were asked for.

        Raises:
            ConfigError: there is no room for one.
        """
        there, share = _ray().cluster_resources(), self._share()
        room = [
            there.get(name, 0) // of
            for name, of in (("GPU", share["num_gpus"]), ("CPU", share["num_cpus"]))
            if of
        ]
        most = int(min(room))
        asked = most if self.workers == "auto" else int(self.workers)
        if not 1 <= asked <= most:
            raise ConfigError(
                f"the Ray cluster has room for {most} workers with {share['num_cpus']:g} CPUs and "
                f"{share['num_gpus']:g} GPUs each, not for engine.workers={self.workers}; see "
                "engine.num_cpus and engine.num_gpus"
            )
        return asked


class Task(NamedTuple):
    """What a worker needs to know of the run.

    Attributes:
        place: folder in which the run was started, for relative paths.
        path: of its imports, for what a user has brought.
        cfg: see `worker_settings`.
        stage: name of the stage.
        artefacts: of the run.
        artefact: that the files are for.
        skipped: images that the run has left out, see `Context.skip`.
    """

    place: Path
    path: Sequence[str]
    cfg: DictConfig
    stage: str
    artefacts: Mapping[str, Artefact]
    artefact: Artefact
    skipped: dict[str, dict[str, str]]


class Worker:
    """A process of the cluster that holds what a stage needs, and makes the files of images.

    Args:
        name: of its records.
        task: the stage.
    """

    def __init__(self, name: str, task: Task) -> None:
        self.name, self.task = name, task

    @cached_property
    def folder(self) -> tempfile.TemporaryDirectory[str]:
        """For what a run writes beside its results; removed with the worker."""
        return tempfile.TemporaryDirectory(prefix="ribseg-")

    @cached_property
    def context(self) -> "Context":
        """The run, as this worker sees it; built by the first call, whose errors reach the run."""
        from ribseg.pipeline.recipe.context import Context

        task = self.task
        _join(task.place, task.path)
        if not task.artefact.folder.is_dir():
            raise ConfigError(
                f"a worker of the Ray cluster does not see {task.artefact.folder}: store and data must be "
                "at the same paths on all machines, as store.root=/shared/store"
            )
        quiet_lightning()
        torch.backends.cudnn.allow_tf32 = bool(task.cfg.tf32)
        context = Context(task.cfg, Path(self.folder.name), task.artefacts)
        context.records = self.name
        if any(task.skipped.values()):
            context.skip(task.skipped)
        return context

    @cached_property
    def stage(self) -> "ImageStage":
        """The stage."""
        from ribseg.pipeline.plan import stages_of

        return cast("ImageStage", next(s for s in stages_of(self.context.cfg) if s.name == self.task.stage))

    @cached_property
    def module(self) -> Any:
        """What all calls share: the classifier on its device."""
        return self.stage.module(self.context, self.task.artefact)

    def make(self, ids: Sequence[str]) -> list[str]:
        """The ids of images, whose files are made as far as they do not exist."""
        missing = self.stage.missing(self.task.artefact, ids)
        if missing:
            self.stage.predict(self.context, self.task.artefact, missing, self.module)
        return list(ids)


def worker_settings(cfg: DictConfig) -> DictConfig:
    """The configuration of a run for a worker, which is one process that prints and logs nothing."""
    settings = copy.deepcopy(cfg)
    with open_dict(settings):
        for name, value in ALONE.items():
            OmegaConf.update(settings, name, value)
    return settings


def _join(place: Path, path: Sequence[str]) -> None:
    """Makes relative paths and the user's modules mean what they mean in the run."""
    if not place.is_dir():
        raise ConfigError(f"a worker of the Ray cluster does not see {place}, where the run was started")
    os.chdir(place)
    sys.path += [folder for folder in path if folder not in sys.path]


def _do(place: Path, path: Sequence[str], work: Callable[[Job], None], jobs: Sequence[Job]) -> int:
    _join(place, path)
    for job in jobs:
        if not job[-1].is_file():
            work(job)
    return len(jobs)


def _parts(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _as_they_end(waiting: list[Any]) -> Iterator[Any]:
    while waiting:
        ended, waiting = _ray().wait(waiting)
        yield _ray().get(ended[0])


def _results(done: Iterable[T], retries: int) -> Iterator[T]:
    """The results; errors of workers as the errors of ribseg that they are."""
    errors = _ray().exceptions
    try:
        yield from done
    except errors.RayTaskError as error:
        if isinstance(error.cause, RibsegError):
            raise error.cause from error
        raise
    except (errors.RayActorError, errors.WorkerCrashedError) as error:
        raise RibsegError(
            f"a worker of the Ray cluster has died {retries + 1} times at the same work: its log says why, "
            f"often that memory was short. Finished images are kept: give the same command again ({error})"
        ) from error


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError('engine=ray needs Ray: pip install "ribseg[ray]"') from error
    return ray
