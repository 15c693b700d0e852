"""ribseg: weakly supervised semantic segmentation from image-level labels with RIB.

Importing the package loads neither Lightning nor Hydra nor wandb; names are looked up on first use.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "GAP": "ribseg.pooling",
    "GNDRP": "ribseg.pooling",
    "RIB": "ribseg.rib",
    "Adaptation": "ribseg.types",
    "Classifier": "ribseg.models.classifier",
    "LocalizationMaps": "ribseg.types",
    "ThresholdSweep": "ribseg.metrics",
    "cam": "ribseg.localize",
    "load_official_classifier": "ribseg.models.official",
    "merge_maps": "ribseg.localize",
}
_SUBMODULES = ("analysis", "data", "functional", "models", "modules", "pipeline")

__all__ = [*sorted(_EXPORTS), "functional"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"ribseg.{name}")
    raise AttributeError(f"module 'ribseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
