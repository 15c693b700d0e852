"""The session of a run: settings, data, Trainer, callbacks, loggers, console, and the processes."""

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import Logger

from ribseg.checks import check_number, check_switch, within
from ribseg.errors import ConfigError
from ribseg.models.weights_file import resolve_weights
from ribseg.modules.data_module import WSSSDataModule
from ribseg.modules.progress import TrainerProgress
from ribseg.pipeline.recipe.build import build, build_kind, plain
from ribseg.pipeline.recipe.console import LoggedConsole
from ribseg.pipeline.recipe.data import counted_data
from ribseg.pipeline.recipe.loggers import logger_settings
from ribseg.pipeline.recipe.methods import Entry, MapSource, entries, map_sources
from ribseg.pipeline.recipe.processes import Processes, WaitingGroup
from ribseg.pipeline.recipe.trainer import check_trainer, counted_trainer
from ribseg.progress import check_progress, track
from ribseg.store.artefact import Artefact, Store, check_writable
from ribseg.store.contents import Contents
from ribseg.store.run import LocalEngine, Run
from ribseg.store.settings import SHOWN, Settings, setting
from ribseg.store.shards import Shard
from ribseg.store.usage import Usage
from ribseg.workers import forks, ordered_map, worker_count

T = TypeVar("T")
Job = TypeVar("Job")
Workers = Literal["new", "threads", "here"]
# Settings that differ in each of several processes that divide the images of a stage.
PART = {
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "trainer.strategy": "auto",
    "progress": False,
    "logger": None,
}
REPORT, CHECK_DATA = "report", "check_data"  # names in `run` that are no stages


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The settings at the top of a configuration."""

    progress: bool | str = setting(check_progress, neutral=SHOWN)
    seed: int = setting(partial(check_number, low=0, high=2**32 - 1, whole=True))
    process_timeout: float = setting(partial(check_number, above=0), neutral=SHOWN)
    tf32: bool = setting(check_switch)
    check_files: bool = setting(
        check_switch, neutral="broken files end the run, or are left out of the lists"
    )


class Session:
    """What the stages of one run share.

    Args:
        cfg: the composed configuration.
        output: folder of the run, for results and report.
        kinds: section -> dataclasses of its settings, see `ribseg.store.settings.Settings`.

    Attributes:
        settings: dataclass -> its settings.
        group: the processes of the run.
        run: the stages that were planned, and those that are chosen.
        shard: the part of the images that the run makes; None for all.
        skipped: split -> image id -> reason, of the images that `skip` removed from the lists.
        record_prefix: begins the names of the files with the records of single images, see `MapWriter`.
        usage: of the stage that runs, or ran last.
        started: time at which the run began, in seconds since 1970.

    Raises:
        ConfigError: settings are out of range, or would have no effect.
    """

    def __init__(self, cfg: DictConfig, output: Path, kinds: Mapping[str, Iterable[type]]) -> None:
        self.cfg, self.output = cfg, output
        check_writable(output, "hydra.run.dir")
        for section in ("store", "data", "trainer", *filter(None, kinds)):
            if not OmegaConf.is_dict(cfg[section]):
                raise ConfigError(
                    f"{section}: expected settings, as {section}.NAME=VALUE, got {section}={cfg[section]}"
                )
        self.settings = Settings({path: plain(cfg[path] if path else _top(cfg)) for path in kinds}, kinds)
        check_trainer(cfg.trainer)
        self._sections: dict[str, Any] = {}
        self.group = Processes(cfg.process_timeout, self._launched_apart)
        self.console = LoggedConsole(quiet=not self.group.first)
        self.shard = Shard.parse(cfg.get("shard"))
        self.record_prefix = "" if self.shard is None else f"{self.shard.label}-"
        self.run = Run([], [])
        self.skipped: dict[str, dict[str, str]] = {}
        self.usage, self.started = Usage(), time.time()

    @cached_property
    def store(self) -> Store:
        """The artefact store; its folder must be writable."""
        return Store(self.cfg.store.root)

    @cached_property
    def contents(self) -> Contents:
        """Digests of files of data, remembered in the store."""
        return Contents(self.store.root / ".contents")

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Name -> entry of `methods`."""
        return entries(self.cfg)

    @property
    def makers(self) -> list[Entry]:
        """The entries that make maps themselves, each with a stage of its own."""
        return [entry for entry in self.entries.values() if entry.maps_of is None]

    @cached_property
    def sources(self) -> dict[str, MapSource]:
        """Name -> source of localization maps."""
        return map_sources(self.entries)

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
        """The DataModule, with all splits opened.

        Raises:
            ConfigError: a setting is out of range, or would have no effect.
            DataError: a list or its labels cannot be read.
        """
        for name in ("labels", "classes"):
            if name in self.prepared and self.cfg.data[name] is not None:
                raise ConfigError(
                    f"data.{name}={self.cfg.data[name]} would have no effect: these data are made by "
                    f"`prepare` ({self.cfg.prepare._target_}). Leave it out, and see the settings of prepare"
                )
        with within("data"):
            data: WSSSDataModule = build(self.cfg.data, seed=self.cfg.seed, _convert_="all", **self.prepared)
            data.contents = self.contents
            data.setup()
        return data

    @property
    def artefacts(self) -> dict[str, Artefact]:
        """Name of a planned stage -> its artefact."""
        return {name: stage.artefact for name, stage in self.run.planned.items()}

    def say(self, text: str, name: str = "", style: str = "bold") -> None:
        """Prints a line in the first process, see `ribseg.pipeline.recipe.console`."""
        self.console.say(text, name, style)

    def warn(self, text: str, name: str = "warning") -> None:
        """Prints a line that is no error, in yellow."""
        self.console.say(text, name, "yellow")

    def resolve(self, name: str, value: str) -> str:
        """For digests, the file of packaged weights and the CRF that "auto" takes; else the value."""
        if name == "backend" and value == "auto":
            return "torch" if find_spec("pydensecrf") is None else "pydensecrf"
        return str(resolve_weights(value)) if name == "weights" else value

    def counted(self, *sections: str, data: Iterable[str] | None = None) -> dict[str, Any]:
        """The settings of common sections, as a digest covers them.

        Args:
            sections: of "trainer", "callbacks", "pooling", "seed" and "tf32".
            data: see `counted_data`; None leaves the settings of the data out.
        """
        found = {name: self._plain(name) for name in sections}
        if "trainer" in found:
            found["trainer"] = counted_trainer(found["trainer"])
        if data is not None:
            found["data"] = counted_data(self._plain("data"), *data)
        return found

    def _plain(self, section: str) -> Any:
        """The settings of a section, resolved once for all stages."""
        if section not in self._sections:
            self._sections[section] = plain(self.cfg[section])
        return self._sections[section]

    @property
    def workers(self) -> int:
        """Number of processes that work on single images on this machine."""
        return worker_count(getattr(self.run.engine, "processes", "auto"))

    def map(
        self, work: Callable[[Job], T], jobs: Sequence[Job], title: str, unit: str, otherwise: Workers = "new"
    ) -> Iterator[T]:
        """Yields the results of jobs in their order, with progress; done by processes, each several of them.

        Args:
            work: on one job; for new processes a function of a module, or a `partial` of one.
            jobs: one for each image or file.
            title: of the progress.
            unit: of the progress.
            otherwise: what does the jobs where processes are not forked: new ones, threads, or this one here.
        """
        number = min(self.workers, len(jobs))
        # New processes import everything again, which takes longer than a few jobs.
        if not forks() and (otherwise == "here" or (otherwise == "new" and len(jobs) < 2 * number)):
            number = 1
        threads = otherwise == "threads" and not forks()
        with closing(ordered_map(work, jobs, number, threads)) as results:
            yield from self.track(results, title, len(jobs), unit)

    def do(self, work: Callable[[Job], None], jobs: Sequence[Job], title: str) -> None:
        """Does jobs that write files, in the first process of the run, as `map` does them."""
        if self.group.first:
            for _ in self.map(work, jobs, title, "file"):
                pass

    def part(self) -> None:
        """Makes this the session of one process of several, which prints and logs nothing; once or again."""
        with open_dict(self.cfg):
            for name, value in PART.items():
                OmegaConf.update(self.cfg, name, value)
        if not self.console.quiet:
            self.record_prefix += f"{socket.gethostname()}-{os.getpid()}-"
        self.run.engine, self.shard, self.console = LocalEngine(1), None, LoggedConsole(quiet=True)
        vars(self).pop("hardware", None)
        if forks():
            self.data.num_workers = 0

    def computed(self, artefact: Artefact, work: Callable[[], Mapping[str, Any]]) -> Artefact:
        """An artefact beside those of the stages; the first process computes it if the store lacks it.

        Args:
            artefact: in the store.
            work: returns the facts for its manifest.
        """
        # Before a Trainer has connected them, each process waits for the lock of the one that computes.
        if not artefact.finished and (self.group.first or not self.group.connected):
            artefact.compute(work, self.say)
        self.group.wait()
        return artefact

    def skip(self, broken: dict[str, dict[str, str]]) -> None:
        """Removes broken images from the lists of the data: split -> image id -> reason."""
        self.skipped = broken
        self.data.drop({image_id for images in broken.values() for image_id in images})

    def track(self, items: Iterable[T], title: str, total: int, unit: str = "image") -> Iterator[T]:
        """The items, with their progress as `progress` says; counted for the summary of the stage."""
        for item in track(items, title, total, self.progress, self.console, unit):
            yield item
            self.usage.count(unit, 1)

    @property
    def progress(self) -> bool | str:
        """How progress is shown, see `check_progress`; not at all without the Trainer's bar."""
        return self.cfg.progress if self.cfg.trainer.get("enable_progress_bar", True) else False

    @cached_property
    def hardware(self) -> pl.Trainer:
        """A Trainer as configured, but for its precision: to ask for devices and processes."""
        with within("trainer"):
            return build(self.cfg.trainer, logger=False, precision="32-true", _convert_="all")

    def _launched_apart(self) -> bool:
        """Whether other processes of this run exist before its first training connects them."""
        environment = getattr(self.hardware.strategy, "cluster_environment", None)
        external = getattr(environment, "creates_processes_externally", False)
        return self.processes > 1 and (self.hardware.num_nodes > 1 or external)

    @property
    def processes(self) -> int:
        """Number of processes of the Trainer."""
        return self.hardware.world_size

    @cached_property
    def result_loggers(self) -> list[Logger]:
        """The loggers of the results."""
        return self.loggers("results")

    def loggers(self, stage: str) -> list[Logger]:
        """The configured loggers for one stage; none with logger=none."""
        nodes = logger_settings(self.cfg.logger, stage, self.output)
        with within("logger"):
            return [build_kind(Logger, each["_target_"], each) for each in nodes]

    def trainer(
        self, stage: str, folder: Path, callbacks: Sequence[Callback] = (), logged: bool = True, **kwargs: Any
    ) -> pl.Trainer:
        """A Trainer for one stage, with the configured devices and loggers.

        Args:
            stage: names the logger's run.
            folder: of the Trainer's own files.
            callbacks: of the stage.
            logged: whether there is something to log; predictions log nothing.
            kwargs: settings that the stage decides; `check_trainer` rejects them in the configuration.
        """
        own = any(isinstance(callback, ProgressBar) for callback in callbacks)  # of the user's
        bar = TrainerProgress(stage, self.progress, self.console, self.usage.count)
        return build(
            self.cfg.trainer,
            _convert_="all",  # Lightning takes no nodes of a configuration, as for max_time
            logger=(logged and self.loggers(stage)) or False,
            callbacks=[WaitingGroup(self.cfg.process_timeout), *callbacks, *([] if own else [bar])],
            default_root_dir=str(folder),
            enable_progress_bar=not own or self.progress is not False,
            enable_model_summary=self.cfg.trainer.get("enable_model_summary", False),
            **kwargs,
        )

    def callbacks(self, part: str) -> list[Callback]:
        """The callbacks of a training: of the section `callbacks`, and of the training's own section.

        Args:
            part: "classifier", "affinity", "segmenter" or "bottleneck".
        """
        with within(f"callbacks, or {part}.callbacks"):
            return [build_kind(Callback, name, node) for name, node in self.callback_nodes(part).items()]

    def callback_nodes(self, part: str) -> dict[str, Any]:
        """Name -> configuration of the callbacks of a training, without those set to null."""
        named = (plain(self.cfg.callbacks) or {}) | (plain(self.cfg[part].get("callbacks")) or {})
        return {name: node for name, node in named.items() if node}


def _top(cfg: DictConfig) -> dict[str, Any]:
    """The settings at the top of a configuration that `RunSettings` reads."""
    return {each.name: plain(cfg[each.name]) for each in fields(RunSettings) if each.name in cfg}
