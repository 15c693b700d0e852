"""The context of a run: settings, data, store, processes, and what to run."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytorch_lightning as pl
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import Logger

from ribseg.errors import ConfigError, RibsegError
from ribseg.modules.data_module import WSSSDataModule
from ribseg.modules.progress import TrainerProgress
from ribseg.pipeline.recipe.build import build, named_callbacks
from ribseg.pipeline.recipe.console import LoggedConsole
from ribseg.pipeline.recipe.engines import Engine, LocalEngine
from ribseg.pipeline.recipe.loggers import logger_settings
from ribseg.pipeline.recipe.processes import WaitingGroup, is_first_process, value_of_first, wait_for_all
from ribseg.pipeline.recipe.usage import Usage
from ribseg.progress import track
from ribseg.store.artefact import Artefact, Store, check_writable
from ribseg.store.digest import plain
from ribseg.store.locks import locked, locked_part
from ribseg.store.shards import Shard

if TYPE_CHECKING:
    from ribseg.store.stage import Stage

T = TypeVar("T")
MADE = ("labels", "classes")  # settings of the data that must be null if `prepare` sets them


class Context:
    """The context that the stages of one run share.

    Args:
        cfg: the configuration; `run` and `rerun` name single stages, see `plan.planned`.
        output: folder of the run, for results and report.
        artefacts: of stages that were planned elsewhere.

    Attributes:
        data: the DataModule.
        console: prints in the first process only.
        artefacts: stage name -> its artefact, of all planned stages; filled by `plan`.
        rerun: names of the stages that are computed again although the store holds their results.
        shard: the part of the images that the run makes; None for all.
        skipped: split -> image id -> reason, of the images that `skip` removed from the lists.
        running: name of the stage that runs, or ran last; "run" before the first one.
        records: begins the names of the files with the records of single images, see `MapWriter`.
        usage: of the stage that runs, or ran last.
        started: time at which the run began, in seconds since 1970.
    """

    def __init__(
        self,
        cfg: DictConfig,
        output: Path,
        artefacts: Mapping[str, Artefact] | None = None,
    ) -> None:
        self.cfg, self.output = cfg, output
        check_writable(output, "hydra.run.dir")
        self.console = LoggedConsole(quiet=not self.is_first)
        self.artefacts = dict(artefacts or {})
        self.rerun: set[str] = set()
        self.shard = Shard.parse(cfg.get("shard"))
        self.skipped: dict[str, dict[str, str]] = {}
        self.usage, self.started = Usage(), time.time()
        self.running = "run"
        self.records = "" if self.shard is None else f"{self.shard.label}-"

    @cached_property
    def store(self) -> Store:
        """The artefact store; its folder must be writable, unless all artefacts were given."""
        return Store(self.cfg.store.root)

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """Settings of the data from `prepare`, which makes the demo's images or COCO's masks."""
        made = build(self.cfg.prepare) if self.cfg.prepare else None
        return made if isinstance(made, dict) else {}

    @property
    def preparation(self) -> dict[str, Any]:
        """Settings and facts of `prepare`, for `results.json`; empty without it."""
        if not self.cfg.prepare:
            return {}
        return plain(self.cfg.prepare) | getattr(self.prepared, "facts", {})

    @cached_property
    def data(self) -> WSSSDataModule:
        """The DataModule, built on first use.

        Raises:
            ConfigError: a setting would have no effect.
        """
        idle = [name for name in MADE if name in self.prepared and self.cfg.data[name] is not None]
        if idle:
            raise ConfigError(
                f"data.{idle[0]}={self.cfg.data[idle[0]]} would have no effect: these data are made by "
                f"`prepare` ({self.cfg.prepare._target_}). Leave it out, and see the settings of prepare"
            )
        return build(self.cfg.data, seed=self.cfg.seed, _convert_="all", **self.prepared)

    @property
    def is_first(self) -> bool:
        """Whether this process has rank 0: it decides, writes tables and prints."""
        return is_first_process()

    def agree(self, value: T) -> T:
        """The value of the first process, in all processes of the process group."""
        return value_of_first(value)

    def on_first(self, work: Callable[[], object]) -> None:
        """Calls `work` in the first process; the others wait."""
        if self.is_first:
            work()
        self.wait()

    def share(self, items: Sequence[T]) -> list[T]:
        """The items, one for each image, that this run makes: all, or those of its shard."""
        return list(items) if self.shard is None else self.shard.take(items)

    def makes_part(self, stage: "Stage") -> bool:
        """Whether this run makes only the images of its shard in a stage."""
        return self.shard is not None and stage.in_shards

    def locked(self, artefact: Artefact, part: bool = False) -> AbstractContextManager[None]:
        """A context in which no other run computes the artefact; all processes of this run wait for it.

        Args:
            artefact: to be computed.
            part: whether only the images of the run's shard are; then others may compute other shards.

        Raises:
            RibsegError: it has to be waited for, but the processes of this run cannot agree on that.
        """
        how = (artefact.stage, self.console.say, self.is_first, self._agree_to_wait)
        if part and self.shard is not None:
            return locked_part(artefact.folder, self.shard.label, *how)
        return locked(artefact.folder, *how)

    def _agree_to_wait(self, held: bool) -> bool:
        """Whether the first process holds a lock, in all processes."""
        if not held and not dist.is_initialized() and self._launched_apart:
            raise RibsegError(
                "another run computes this result, and the processes of this one, which a launcher has "
                "started, cannot wait for it together yet. Start this run when the other one has ended"
            )
        return self.agree(held)

    @cached_property
    def _launched_apart(self) -> bool:
        """Whether other processes of this run exist before its first training makes a group of them."""
        trainer = build(self.cfg.trainer, logger=False)
        place = getattr(trainer.strategy, "cluster_environment", None)
        external = trainer.num_nodes > 1 or getattr(place, "creates_processes_externally", False)
        return trainer.world_size > 1 and external

    def plan(self, stage: "Stage") -> Artefact:
        """Adds the artefact of a stage, whose inputs must have been planned, and returns it.

        The stage is computed again if `rerun` names it or one of its inputs is.
        """
        artefact = self.artefacts[stage.name] = stage.artefact(self)
        if stage.name in self.cfg.rerun or self.rerun & set(stage.required(self)):
            self.rerun.add(stage.name)
        return artefact

    def begin_reruns(self) -> None:
        """Creates the folders in which stages are computed again.

        If some exist, an interrupted run with the same command left them: then only these stages remain to be
        computed again, not those that it had already replaced.
        """
        chosen = self.rerun & set(self.cfg.run)
        folders = {name: self.artefacts[name].replacement().folder for name in chosen}
        begun = {name for name, folder in folders.items() if folder.is_dir()}
        if begun:
            self.rerun -= chosen - begun
            return
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)  # all processes of a run may get here at once

    def note_rerun(self, stage: str) -> None:
        """Takes a stage from those to be computed again if another run has replaced its result meanwhile."""
        replaced = stage in self.rerun and not self.artefacts[stage].replacement().folder.is_dir()
        if self.agree(replaced):
            self.rerun.discard(stage)

    def finish(self, stage: str, facts: Mapping[str, Any], again: bool) -> None:
        """Stores the result of a stage, and what it has used; with `again` it replaces the previous one."""
        artefact, used = self.artefacts[stage], (self.usage.seconds, self.usage.peaks)
        self.on_first(lambda: (artefact.replace if again else artefact.finish)(facts, *used))
        self.rerun.discard(stage)

    def skip(self, broken: dict[str, dict[str, str]]) -> None:
        """Removes broken images from the lists of the data: split -> image id -> reason."""
        self.skipped = broken
        self.data.drop({image_id for images in broken.values() for image_id in images})

    def is_ready(self, stage: str) -> bool:
        """Whether the store holds the result of a stage, and the run does not compute it again."""
        return self.artefacts[stage].finished and stage not in self.rerun

    def will_run(self, stage: str) -> bool:
        """Whether this run computes the stage."""
        return stage in self.cfg.run and not self.is_ready(stage)

    @cached_property
    def engine(self) -> Engine:
        """What makes the files of single images."""
        return build(self.cfg.engine) if self.cfg.get("engine") else LocalEngine()

    def wait(self) -> None:
        """Waits until all processes are here.

        Raises:
            RibsegError: one of them has ended, or is later than `process_timeout`.
        """
        if dist.is_initialized():
            wait_for_all(self.running, self.cfg.process_timeout)

    def track(self, items: Iterable[T], title: str, total: int, unit: str = "image") -> Iterator[T]:
        """The items, with their progress as `progress` says; counted for the summary of the stage."""
        for item in track(items, title, total, self.cfg.progress, self.console, unit):
            yield item
            self.usage.count(unit, 1)

    @property
    def processes(self) -> int:
        """Number of processes of the configured Trainer."""
        return build(self.cfg.trainer, logger=False).world_size

    def loggers(self, stage: str) -> list[Logger]:
        """The configured loggers for one stage; none with logger=none."""
        settings = logger_settings(self.cfg.logger, stage, self.output)
        loggers = [build(OmegaConf.create(each)) for each in settings]
        for logger, each in zip(loggers, settings, strict=True):
            if not isinstance(logger, Logger):
                raise ConfigError(f"{each['_target_']} gives {type(logger).__name__}, no logger of Lightning")
        return loggers

    @cached_property
    def result_loggers(self) -> list[Logger]:
        """The loggers of the results, built once."""
        return self.loggers("results")

    def trainer(
        self, stage: str, folder: Path, callbacks: Sequence[Callback] = (), **kwargs: Any
    ) -> pl.Trainer:
        """A Trainer for one stage, with the configured devices and loggers.

        Args:
            stage: names the logger's run.
            folder: of the Trainer's own files.
            callbacks: of the stage.
            kwargs: settings that the stage decides; `check_trainer` rejects them in the configuration.
        """
        progress = self.cfg.progress if self.cfg.trainer.get("enable_progress_bar", True) else False
        own = any(isinstance(callback, ProgressBar) for callback in callbacks)  # of the user's
        bar = TrainerProgress(stage, progress, self.console, self.usage.count)
        return build(
            self.cfg.trainer,
            logger=self.loggers(stage) or False,
            callbacks=[WaitingGroup(self.cfg.process_timeout), *callbacks, *([] if own else [bar])],
            default_root_dir=str(folder),
            enable_progress_bar=not own or progress is not False,
            enable_model_summary=self.cfg.trainer.get("enable_model_summary", False),
            **kwargs,
        )

    def callbacks(self, part: str) -> dict[str, Callback]:
        """Name -> callback of a training: of the section `callbacks`, and of the training's own section.

        Args:
            part: "classifier", "affinity", "segmenter" or "bottleneck".
        """
        chosen = named_callbacks({name: plain(self.cfg[name]) for name in ("callbacks", part)}, part)
        callbacks = {name: build(OmegaConf.create(node)) for name, node in chosen.items()}
        for name, callback in callbacks.items():
            if not isinstance(callback, Callback):
                raise ConfigError(f"{name} gives {type(callback).__name__}, no callback of Lightning")
        return callbacks
