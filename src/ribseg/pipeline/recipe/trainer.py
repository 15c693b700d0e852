"""Settings of the Trainer: those that ribseg decides, its precision, and what counts for a digest."""

import platform
from collections.abc import Mapping
from typing import Any

import torch

from ribseg.errors import ConfigError
from ribseg.store.settings import SHOWN
from ribseg.store.sources import is_foreign

DEVICE = "selects devices; batch sizes count all processes together"
# Settings that cannot change a result -> why. Those of a class of the user's own all count.
NEUTRAL = {
    "accelerator": DEVICE,
    "devices": DEVICE,
    "strategy": DEVICE,
    "num_nodes": DEVICE,
    "enable_progress_bar": SHOWN,
    "enable_model_summary": SHOWN,
    "log_every_n_steps": SHOWN,
    "max_time": "a training that it ends is not complete, and goes on without it",
    "num_sanity_val_steps": "runs before the training",
    "profiler": SHOWN,
}
# Settings that ribseg sets itself -> the setting to use instead.
DECIDED = {
    "callbacks": "callbacks.NAME._target_=... for every training, or classifier.callbacks and so on for one",
    "logger": "logger=csv, or logger.NAME._target_=...",
    "default_root_dir": "store.root and hydra.run.dir",
    "max_epochs": "classifier.epochs, affinity.epochs or bottleneck.training.epochs",
    "min_epochs": "classifier.epochs, affinity.epochs or bottleneck.training.epochs",
    "max_steps": "segmenter.max_steps, classifier.epochs or affinity.epochs",
    "min_steps": "segmenter.max_steps, classifier.epochs or affinity.epochs",
    "accumulate_grad_batches": "segmenter.accumulate; other trainings do not accumulate",
    "check_val_every_n_epoch": "segmenter.check_every",
    "val_check_interval": "segmenter.check_every",
    "enable_checkpointing": "nothing: interrupted trainings resume from checkpoints",
    "inference_mode": "nothing: each stage knows whether it needs gradients",
    "use_distributed_sampler": "nothing: the loaders divide the data among processes",
    "fast_dev_run": "small settings, as classifier.epochs=1: the store takes only complete results",
    "limit_predict_batches": "shorter lists: the store takes only complete results",
    "barebones": "logger=none progress=false",
}
ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true", "None": "32-true"}
USABLE = ("32-true", "64-true", "bf16-mixed")
HALF = ("16-true", "bf16-true")
ON_GPU = "16-mixed"


def counted_trainer(node: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the Trainer that count for a digest."""
    neutral = () if is_foreign(str(node.get("_target_", "ribseg"))) else NEUTRAL
    return {name: value for name, value in node.items() if name not in neutral}


def check_trainer(node: Mapping[str, Any]) -> None:
    """Rejects settings of the Trainer that ribseg sets itself, instead of ignoring them.

    Raises:
        ConfigError: there is one; names the setting to use.
    """
    for name, instead in DECIDED.items():
        if name in node:
            raise ConfigError(f"trainer.{name} is decided by ribseg; use {instead}")


def check_precision(setting: str, value: Any, on_gpu: bool) -> None:
    """Checks that trainings and adaptation can work in a precision of the Trainer.

    Raises:
        ConfigError: they cannot; names one that can.
    """
    precision = ALIASES.get(str(value), str(value))
    if precision in USABLE or (precision == ON_GPU and on_gpu):
        return
    instead = "use bf16-mixed for half the memory, or 32-true"
    why = f"there is no such precision; expected one of {', '.join((*USABLE, ON_GPU))}"
    if precision in HALF:
        why = (
            "it keeps the weights in half precision, where the small steps of optimizers and of RIB are "
            f"rounded away or overflow; {instead}"
        )
    elif precision == ON_GPU:
        why = f"it needs a GPU: on a CPU Lightning silently uses another precision; {instead}"
    elif precision.startswith("transformer-engine"):
        why = f"it is for linear layers in float8, not for convolutions; {instead}"
    raise ConfigError(f"{setting}={value} cannot work: {why}")


def slow_precision(setting: str, value: Any, on_gpu: bool) -> str | None:
    """A sentence for bf16-mixed on a processor without units for bfloat16; None where nothing is to be said.

    On such a processor CAM took 6 times as long as in single precision, and a training step 15 times
    (EfficientNet-Lite0, one core).
    """
    if not str(value).startswith("bf16") or on_gpu or has_bfloat16_units():
        return None
    return (
        f"{setting}={value} on a processor without units for bfloat16 (avx512_bf16, amx_bf16): several times "
        "slower than 32-true"
    )


def has_bfloat16_units() -> bool:
    """Whether the processor computes in bfloat16; True if that is not known."""
    tests = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    known = [test for test in tests if test is not None]
    if platform.machine().lower() not in ("x86_64", "amd64") or not known:
        return True
    return any(test() for test in known)
