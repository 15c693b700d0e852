"""LightningModules: the classifier's training, and the stages that make localization maps."""

from ribseg.modules.classification import ClassifierModule
from ribseg.modules.localization import (
    CAMModule,
    FeatureNormModule,
    LocalizationModule,
    Prediction,
    RIBModule,
    WrongClassModule,
)

__all__ = [
    "CAMModule",
    "ClassifierModule",
    "FeatureNormModule",
    "LocalizationModule",
    "Prediction",
    "RIBModule",
    "WrongClassModule",
]
