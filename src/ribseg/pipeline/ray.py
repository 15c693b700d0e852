"""An engine on Ray: a task makes a shard of the images, and is given out again if its worker dies."""

import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast
from uuid import uuid4

import torch
from omegaconf import DictConfig

from ribseg.checks import check_number
from ribseg.errors import ConfigError, RibsegError
from ribseg.pipeline.plan import KINDS, stages_of
from ribseg.pipeline.recipe.console import quiet_lightning
from ribseg.pipeline.recipe.session import Session
from ribseg.store.artefact import Artefact
from ribseg.store.run import Run
from ribseg.store.shards import Shard
from ribseg.store.stage import ImageStage

Auto = Literal["auto"]


class RayEngine:
    """Makes maps, labels, walks and masks by the workers of a Ray cluster.

    The files are equal to the byte to those of one process: what is drawn for an image depends on the seed
    and the image alone, and the number of threads on each worker is that of the run.

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
        ray = _ray()
        if not ray.is_initialized():
            try:
                ray.init(address=self.address, include_dashboard=None if self.address else False)
            except (ConnectionError, ValueError) as error:
                raise ConfigError(
                    f"engine.address={self.address}: no Ray cluster answers: {error}"
                ) from error
        self._number()

    def make(self, stage: ImageStage[Session], target: Artefact, ids: Sequence[str]) -> None:
        """Lets workers make the files of images; the first process of the run hands them out."""
        stage.session.group.on_first(lambda: self._make(stage, target, ids))

    def _make(self, stage: ImageStage[Session], target: Artefact, ids: Sequence[str]) -> None:
        self.start()
        ray, session, number = _ray(), stage.session, -(-len(ids) // self.images)
        inputs = {name: each.artefact for name, each in session.run.planned.items()}
        run = Task(
            uuid4().hex,
            Path.cwd(),
            sys.path,
            session.cfg,
            stage.name,
            inputs,
            target,
            list(ids),
            session.skipped,
        )
        task, remote = ray.put(run), ray.remote(max_retries=self.retries, **self._share())(make_shard)
        shards = [Shard(part, number) for part in range(1, number + 1)]
        done = self._results(lambda shard: remote.remote(task, shard), shards)
        for _ in session.track((1 for images in done for _ in range(images)), stage.name, len(ids)):
            pass

    def _results(self, submit: Callable[[Shard], Any], shards: Sequence[Shard]) -> Iterator[int]:
        """The numbers of images of the shards, as they end; as many at a time as there are workers."""
        ray, waiting, left = _ray(), list[Any](), list(shards)
        workers = self._number()
        try:
            while waiting or left:
                while left and len(waiting) < workers:
                    waiting.append(submit(left.pop(0)))
                ended, waiting = ray.wait(waiting)
                yield ray.get(ended[0])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RibsegError):
                raise error.cause from error
            raise
        except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError) as error:
            raise RibsegError(
                f"a worker of the Ray cluster has died {self.retries + 1} times at the same work: its log "
                "says why, often that memory was short. Finished images are kept: give the same command "
                f"again ({error})"
            ) from error
        finally:
            for each in waiting:
                ray.cancel(each, force=True)

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
        needs = {"GPU": share["num_gpus"], "CPU": share["num_cpus"]}
        most = int(min(there.get(name, 0) // each for name, each in needs.items() if each))
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
        key: of the task; a worker keeps what it has built for it.
        place: folder in which the run was started, for relative paths.
        path: of its imports, for what a user has brought.
        cfg: of the run.
        stage: name of the stage.
        artefacts: of the run.
        target: that the files are for.
        ids: of the images.
        skipped: images that the run has left out, see `Session.skip`.
    """

    key: str
    place: Path
    path: Sequence[str]
    cfg: DictConfig
    stage: str
    artefacts: dict[str, Artefact]
    target: Artefact
    ids: Sequence[str]
    skipped: dict[str, dict[str, str]]

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.key == other.key


def make_shard(task: Task, shard: Shard) -> int:
    """Makes the files of a shard of a task's images that do not exist; returns the number of its images."""
    stage, ids = stage_of(task), shard.take(task.ids)
    if missing := stage.missing(task.target, ids):
        stage.make(task.target, missing)
    return len(ids)


@lru_cache(maxsize=1)
def stage_of(task: Task) -> ImageStage[Session]:
    """The stage of a task in this process, with what it has built for earlier shards."""
    if not task.place.is_dir():
        raise ConfigError(f"a worker of the Ray cluster does not see {task.place}, where the run was started")
    os.chdir(task.place)
    sys.path += [folder for folder in task.path if folder not in sys.path]
    if not task.target.folder.is_dir():
        raise ConfigError(
            f"a worker of the Ray cluster does not see {task.target.folder}: store and data must be "
            "at the same paths on all machines, as store.root=/shared/store"
        )
    quiet_lightning()
    torch.backends.cudnn.allow_tf32 = bool(task.cfg.tf32)
    session = Session(copy.deepcopy(task.cfg), Path(_scratch().name), KINDS)
    if any(task.skipped.values()):
        session.skip(task.skipped)
    session.run = Run(stages_of(session), [])
    session.part()
    session.run.adopt(task.artefacts)
    return cast(ImageStage[Session], session.run.planned[task.stage])


@lru_cache(maxsize=1)
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    """For what a run writes beside its results; removed with the worker's process."""
    return tempfile.TemporaryDirectory(prefix="ribseg-")


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError('engine=ray needs Ray: pip install "ribseg[ray]"') from error
    return ray
