"""Lightning's loggers for the stages of a run: any of them, by `_target_`, one or several at once.

`logger` is the configuration of one logger, or a mapping of names to such configurations. Each stage that
logs, and the results at the end, get loggers of their own.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_warn

from ribseg.checks import within
from ribseg.errors import ConfigError
from ribseg.pipeline.recipe.build import located

FOLDER = "logs"
EXAMPLE = "pytorch_lightning.loggers.CSVLogger"
Settings = dict[str, Any]


def logger_settings(node: Any, stage: str, output: Path) -> list[Settings]:
    """The settings of each configured logger, `_target_` included, for one stage.

    "{stage}", "{output}" and "{run}" are replaced in all texts. `save_dir` and `name`, if the logger takes
    them and they are not given, are set so that each stage logs to `logs/<stage>` in the run's folder; for
    W&B see `wandb_defaults`.

    Args:
        node: `cfg.logger`.
        stage: name of the logs.
        output: the run's folder.

    Raises:
        ConfigError: not a configuration of loggers, or a logger cannot be imported.
    """
    texts = {"{stage}": stage, "{output}": str(output), "{run}": run_name(output)}
    found = []
    for place, given in _configured(node).items():
        with within(f"{place}._target_={given['_target_']}"):
            defaults = _defaults(located(given["_target_"]), given, stage, output)
        found.append({"_convert_": "all"} | defaults | _filled_in(given, texts))
    return found


def run_name(output: Path) -> str:
    """A name for the run: the last two parts of its folder."""
    return " ".join(output.resolve().parts[-2:])


def _configured(node: Any) -> dict[str, Settings]:
    """Path in the configuration -> settings of a logger, without those set to null."""
    settings: Any = node or {}
    try:
        if OmegaConf.is_config(settings):
            settings = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"the setting {error.full_key} has no default; give it a value") from error
    if isinstance(settings, dict) and "_target_" not in settings:
        loggers = {f"logger.{name}": value for name, value in settings.items() if value is not None}
    else:
        loggers = {"logger": settings}
    for place, value in loggers.items():
        if not isinstance(value, dict) or "_target_" not in value:
            raise ConfigError(
                f"expected {place} to be a logger's settings, got {value!r}; a logger has a _target_, as "
                f"+logger.NAME._target_={EXAMPLE}"
            )
    return loggers


def _filled_in(value: Any, texts: Mapping[str, str]) -> Any:
    """The value with the placeholders in all of its texts replaced."""
    if isinstance(value, dict):
        return {key: _filled_in(part, texts) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled_in(part, texts) for part in value]
    if isinstance(value, str):
        return functools.reduce(lambda text, item: text.replace(*item), texts.items(), value)
    return value


def _defaults(target: Callable[..., Any], given: Settings, stage: str, output: Path) -> Settings:
    """Default settings of a logger, as far as it accepts them.

    Raises:
        ConfigError: the package that it writes with is not installed.
    """
    kind = target if isinstance(target, type) else object
    if issubclass(kind, WandbLogger):
        return wandb_defaults(given, stage, output)
    if issubclass(kind, TensorBoardLogger) and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise ConfigError(
            "TensorBoardLogger writes with the package tensorboard, which is not installed: "
            "pip install 'ribseg[tensorboard]', or choose logger=csv"
        )
    folders = {"save_dir": str(output / FOLDER), "name": stage}
    if issubclass(kind, CSVLogger | TensorBoardLogger) and "name" not in given:
        folders["version"] = ""  # with a name of the user's, versions distinguish the stages
    accepted = inspect.signature(target).parameters
    return {key: value for key, value in folders.items() if key in accepted}


def wandb_defaults(given: Settings, stage: str, output: Path) -> Settings:
    """Default settings for W&B: a group per run, a job type per stage; offline without a login.

    Args:
        given: the user's settings; with `offline`, `mode` or WANDB_MODE no login is tried.
        stage: the job type.
        output: the run's folder, in which `wandb/` is created.
    """
    group = run_name(output)
    settings = {"save_dir": str(output), "name": f"{group} {stage}", "group": group, "job_type": stage}
    if {"mode", "experiment"} & set(given):
        return settings
    # As `mode`, because Lightning's `offline` sets WANDB_MODE, which wandb may have read already.
    if "offline" in given:
        return settings | ({"mode": "offline"} if given["offline"] else {})
    if "WANDB_MODE" in os.environ:
        return settings | {"mode": os.environ["WANDB_MODE"]}
    return settings if wandb_login() else settings | {"mode": "offline"}


@functools.cache
def wandb_login() -> bool:
    """Whether W&B's server accepts the stored credentials; warns if it does not."""
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except wandb.errors.CommError as error:  # refused, or no network
        rank_zero_warn(f"{error}. The logs of this run stay offline; `wandb sync` uploads them later.")
        return False


def finish_loggers() -> None:
    """Closes W&B's run, so that the next stage does not write into it."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()
