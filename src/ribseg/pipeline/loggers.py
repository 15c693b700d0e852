"""Lightning's loggers, one run per stage, below the run's output folder."""

import netrc
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from ribseg.errors import ConfigError

if TYPE_CHECKING:
    from ribseg.pipeline.context import Context

FOLDER = "logs"


def csv_logger(stage: str, output: str) -> Logger:
    """`logs/<stage>/metrics.csv`."""
    return CSVLogger(Path(output) / FOLDER, name=stage, version="")


def tensorboard_logger(stage: str, output: str) -> Logger:
    """Event files in `logs/<stage>`; look at them with `tensorboard --logdir`."""
    return TensorBoardLogger(Path(output) / FOLDER, name=stage, version="")


def wandb_logger(
    stage: str, output: str, project: str, name: str, mode: str = "auto", **kwargs: Any
) -> Logger:
    """Weights & Biases, one run per stage, grouped by the run's name.

    Args:
        stage: becomes the run's job type.
        output: `wandb/` is made below.
        project: of W&B.
        name: group of the stages' runs.
        mode: "online", "offline", or "auto": offline without an API key or without a network; such runs are
            uploaded later with `wandb sync`.
        kwargs: passed on to `wandb.init`.
    """
    from pytorch_lightning.loggers import WandbLogger

    if mode not in ("auto", "online", "offline"):
        raise ConfigError(f"expected logger.mode auto, online or offline, got {mode!r}")
    offline = mode == "offline" or (mode == "auto" and not wandb_reachable())
    Path(output, "wandb").mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        name=f"{name}-{stage}",
        save_dir=output,
        offline=offline,
        project=project,
        group=name,
        job_type=stage,
        **kwargs,
    )


def wandb_reachable() -> bool:
    """Whether there is an API key, and W&B's server answers within two seconds."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return False
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if not os.environ.get("WANDB_API_KEY") and not _stored_key(url.hostname or ""):
        return False
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=2).close()
    except OSError:
        return False
    return True


def _stored_key(host: str) -> bool:
    """Whether `wandb login` has left a key for the host."""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False  # no such file, or not one that wandb could read either


def finish_loggers() -> None:
    """Closes W&B's run, or the next stage would write into it."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


LOGGED = ("localization", "adaptation", "bottleneck", "segmenter")


def log_results(context: "Context", results: dict[str, Any]) -> None:
    """Hands the numbers of `results.json` to the logger, as `localization/rib/best_miou` and so on."""
    logger = context.logger("results")
    if logger is None:
        return
    logger.log_metrics(numbers({key: results[key] for key in LOGGED if key in results}))
    logger.finalize("success")
    finish_loggers()


def numbers(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in nested dictionaries by path; lists are left out.

    >>> numbers({"a": {"b": 1, "c": None, "d": [2]}})
    {'a/b': 1.0}
    """
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            flat[f"{prefix}{key}"] = float(value)
    return flat
