"""Checks of numerics: precision of the trainings, and normalization of the pixels."""

import math
import platform
from typing import Any

import torch
from omegaconf import DictConfig

from ribseg.errors import ConfigError
from ribseg.models.packages import PACKAGED, STATISTICS
from ribseg.pipeline.recipe.build import build
from ribseg.store.digest import plain

ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true", "None": "32-true"}
USABLE = ("32-true", "64-true", "bf16-mixed")
HALF = ("16-true", "bf16-true")
ON_GPU = "16-mixed"


def check_precision(cfg: DictConfig) -> None:
    """Checks the precision of the Trainer, and that of the segmenter.

    Raises:
        ConfigError: training or adaptation cannot work in it; names one that can.
    """
    given = {
        "trainer.precision": cfg.trainer.get("precision"),
        "segmenter.precision": cfg.segmenter.precision,
    }
    for setting, value in given.items():
        precision = ALIASES.get(str(value), str(value))
        if precision in USABLE or (setting == "segmenter.precision" and value is None):
            continue
        if precision == ON_GPU and _on_gpu(cfg):
            continue
        raise ConfigError(f"{setting}={value} cannot work: {_why(precision)}")


def _why(precision: str) -> str:
    instead = "use bf16-mixed for half the memory, or 32-true"
    if precision in HALF:
        return (
            "it keeps the weights in half precision, where the small steps of optimizers and of RIB are "
            f"rounded away or overflow; {instead}"
        )
    if precision == ON_GPU:
        return f"it needs a GPU: on a CPU Lightning silently uses another precision; {instead}"
    if precision.startswith("transformer-engine"):
        return f"it is for linear layers in float8, not for convolutions; {instead}"
    return f"there is no such precision; expected one of {', '.join((*USABLE, ON_GPU))}"


def slow_precision(cfg: DictConfig) -> str | None:
    """A sentence for bf16-mixed on a processor without units for bfloat16; None where nothing is to be said.

    On such a processor CAM took 6 times as long as in single precision, and a training step 15 times
    (EfficientNet-Lite0, one core).
    """
    chosen = [name for name in ("trainer", "segmenter") if str(cfg[name].get("precision")).startswith("bf16")]
    if not chosen or _on_gpu(cfg) or has_bfloat16_units():
        return None
    return (
        f"{chosen[0]}.precision={cfg[chosen[0]].precision} on a processor without units for bfloat16 "
        "(avx512_bf16, amx_bf16): several times slower than 32-true"
    )


def has_bfloat16_units() -> bool:
    """Whether the processor computes in bfloat16; True if that is not known."""
    tests = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    known = [test for test in tests if test is not None]
    if platform.machine().lower() not in ("x86_64", "amd64") or not known:
        return True
    return any(test() for test in known)


def _on_gpu(cfg: DictConfig) -> bool:
    trainer = build(cfg.trainer, logger=False, precision="32-true")
    return bool(trainer.strategy.root_device.type == "cuda")


def check_normalization(classifier: Any, cfg: DictConfig) -> None:
    """Checks that pixels are normalised as the classifier's weights expect, if that is known.

    Raises:
        ConfigError: they are not; names the settings.
    """
    model, backbone = cfg.classifier.model, getattr(classifier, "backbone", None)
    known = getattr(backbone, "pretrained_cfg", {}) if model.get("pretrained") else {}
    if model.get("weights") in PACKAGED:
        known = STATISTICS
    for name in ("mean", "std"):
        found, expected = plain(cfg.data[name]), known.get(name)
        if expected and not all(map(_near, found, expected)):
            values = ",".join(f"{value:g}" for value in expected)
            raise ConfigError(
                f"the weights of {model.get('weights') or model.backbone} expect pixels normalised with "
                f"data.{name}=[{values}], got {found}; other statistics shift every input of the network"
            )


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, abs_tol=1e-3)
