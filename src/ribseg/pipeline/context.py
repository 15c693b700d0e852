"""What the stages of one run share: settings, data, store, processes."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch.distributed as dist
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ribseg.data.datamodules import WSSSDataModule
from ribseg.errors import ConfigError, RibsegError
from ribseg.pipeline.console import make_console
from ribseg.pipeline.disk import Weights
from ribseg.pipeline.store import Artefact, Store, check_writable

T = TypeVar("T")
NEUTRAL = {
    "_target_", "accelerator", "devices", "strategy", "num_nodes", "enable_progress_bar", "log_every_n_steps",
    "num_sanity_val_steps", "profiler",
}  # fmt: skip
MADE = ("labels", "classes")  # settings of the data that stay open where `prepare` makes them
STATE = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


class Context:
    """One run.

    Args:
        cfg: the composed configuration.
        output: the run's own folder, for results and report.

    Attributes:
        data: the DataModule.
        store: where artefacts lie.
        console: prints on the first process only.
        skipped: split -> image id -> what is wrong with it, of images that were taken off the lists.
        data_facts: what stands under "data" in `results.json`; known after `preflight`.
        weights: "classifier", "affinity", "segmenter" -> size of the network; of those that are still to be
            trained, known after `preflight` has built them once.
    """

    def __init__(self, cfg: DictConfig, output: Path) -> None:
        self.cfg, self.output = cfg, output
        check_writable(output, "hydra.run.dir")
        self.store = Store(cfg.store.root)
        self.console = make_console(quiet=not self.is_first)
        self.artefacts: dict[str, Artefact] = {}
        self.skipped: dict[str, dict[str, str]] = {}
        self.data_facts: dict[str, Any] = {}
        self.weights: dict[str, Weights] = {}

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """Settings of the data, once the demo's images or COCO's masks are there."""
        made = build(self.cfg.prepare) if self.cfg.prepare else None
        return made if isinstance(made, dict) else {}

    @property
    def preparation(self) -> dict[str, Any]:
        """What made the data, and how, for results; empty where nothing did."""
        if not self.cfg.prepare:
            return {}
        return plain(self.cfg.prepare) | getattr(self.prepared, "facts", {})

    @cached_property
    def data(self) -> WSSSDataModule:
        """Opened on first use.

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
        """Whether this is the process that decides, writes tables and talks."""
        return cast(int, getattr(rank_zero_only, "rank", 0)) == 0

    def agree(self, value: T) -> T:
        """The first process's value in all processes, once these talk to each other."""
        if not dist.is_initialized():
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_first(self, work: Callable[[], object]) -> None:
        """Does something in the first process; the others wait."""
        if self.is_first:
            work()
        self.wait()

    def wait(self) -> None:
        """Until all processes are here."""
        if dist.is_initialized():
            dist.barrier()

    @property
    def processes(self) -> int:
        """How many processes the configured Trainer has."""
        return build(self.cfg.trainer, logger=False).world_size

    def trainer_settings(self) -> dict[str, Any]:
        """What of the Trainer may change a result, for a digest: not where it computes, nor what it shows."""
        settings = {name: value for name, value in plain(self.cfg.trainer).items() if name not in NEUTRAL}
        return settings if self.cfg.tf32 else settings | {"tf32": False}

    def settings(self, *names: str) -> dict[str, Any]:
        """Parts of the configuration as plain values, for a digest."""
        return {name: plain(self.cfg[name]) for name in names}

    def logger(self, stage: str) -> Logger | None:
        """The configured logger for one stage; None with logger=none."""
        return build(self.cfg.logger, stage=stage, output=str(self.output)) if self.cfg.logger else None

    def trainer(
        self, stage: str, folder: Path, callbacks: Sequence[Callback] = (), **kwargs: Any
    ) -> pl.Trainer:
        """A Trainer for one stage, with the configured devices, logger and threads."""
        return build(
            self.cfg.trainer,
            logger=self.logger(stage) or False,
            callbacks=list(callbacks),
            default_root_dir=str(folder),
            enable_model_summary=False,
            **kwargs,
        )


class separate_processes:  # noqa: N801 - reads as a statement
    """Ends the process group of a run and forgets its addresses, so that a sweep can start its next run."""

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in STATE}

    def __exit__(self, *_: object) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        for name, value in self.before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def build(node: DictConfig, **replaced: Any) -> Any:
    """What a configuration's `_target_` names, with keyword arguments that replace settings.

    Raises:
        ConfigError: the target refuses its arguments; says which part of the configuration it was.
    """
    try:
        return instantiate(node, **replaced)
    except MissingMandatoryValue as error:
        name = error.full_key
        raise ConfigError(f"the setting {name} has no default; give it: {name}=...") from error
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, RibsegError):
            raise cause from error
        if isinstance(cause, ValueError | TypeError | MisconfigurationException):
            raise ConfigError(f"{node.get('_target_')}: {cause}") from error
        raise


def plain(node: Any) -> Any:
    """A configuration node as dictionaries, lists and numbers, all interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
