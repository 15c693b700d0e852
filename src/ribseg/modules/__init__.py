"""LightningModules and DataModules for training and for predicting maps and masks."""

from ribseg.modules.classification import ClassifierModule
from ribseg.modules.data_module import WSSSDataModule
from ribseg.modules.localization import LocalizationModule, Prediction
from ribseg.modules.recam import ReCAMModule
from ribseg.modules.segmentation import SegmentationModule

__all__ = [
    "ClassifierModule",
    "LocalizationModule",
    "Prediction",
    "ReCAMModule",
    "SegmentationModule",
    "WSSSDataModule",
]
