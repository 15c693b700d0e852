"""ribseg: weakly supervised semantic segmentation from image-level labels with RIB.

Importing the package loads neither Lightning nor Hydra nor wandb; names are looked up on first use.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ribseg.inference import predict as predict

__version__ = "0.1.0"

# Here, before any module of ours can import albumentations, which would ask a server for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

_EXPORTS = {
    "GAP": "ribseg.pooling",
    "GNDRP": "ribseg.pooling",
    "RIB": "ribseg.rib",
    "Adaptation": "ribseg.types",
    "Classifier": "ribseg.models.classifier",
    "DeepLabV2": "ribseg.models.deeplab",
    "LocalizationMaps": "ribseg.types",
    "ThresholdSweep": "ribseg.metrics",
    "cam": "ribseg.localize",
    "load_official_classifier": "ribseg.models.official",
    "load_segmenter": "ribseg.models.segmenter",
    "merge_maps": "ribseg.localize",
}
# `predict` is a module that can be called, see there.
_SUBMODULES = ("analysis", "data", "functional", "models", "modules", "pipeline", "predict")

__all__ = [*sorted(_EXPORTS), "functional", "predict"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"ribseg.{name}")
    raise AttributeError(f"module 'ribseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
