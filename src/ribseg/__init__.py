"""ribseg: weakly supervised semantic segmentation from image-level labels with RIB.

Importing the package loads neither Lightning nor Hydra nor wandb; names are looked up on first use.
"""

import os
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Here, before any module of ours can import albumentations, which would ask a server for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# What is public stands here alone: type checkers read it, and `lazy_names` does at run time.
if TYPE_CHECKING:
    from ribseg import analysis as analysis
    from ribseg import data as data
    from ribseg import errors as errors
    from ribseg import functional as functional
    from ribseg import interop as interop
    from ribseg import metrics as metrics
    from ribseg import models as models
    from ribseg import modules as modules
    from ribseg import pipeline as pipeline
    from ribseg import plot as plot
    from ribseg.data.io.maps import LocalizationMaps as LocalizationMaps
    from ribseg.methods import controls as controls
    from ribseg.methods import refine as refine
    from ribseg.methods.cam import cam as cam
    from ribseg.methods.cam import merge_maps as merge_maps
    from ribseg.methods.pooling import GAP as GAP
    from ribseg.methods.pooling import GNDRP as GNDRP
    from ribseg.methods.rib import RIB as RIB
    from ribseg.metrics import ThresholdSweep as ThresholdSweep
    from ribseg.metrics import evaluation as evaluation
    from ribseg.models.classifier import Classifier as Classifier
    from ribseg.models.deeplab import DeepLabV2 as DeepLabV2
    from ribseg.models.inference import predict as predict
    from ribseg.models.load import load as load
    from ribseg.models.load import load_classifier as load_classifier
    from ribseg.models.load import load_segmenter as load_segmenter
    from ribseg.models.released import load_official_classifier as load_official_classifier
    from ribseg.pipeline.localize import localize as localize
    from ribseg.pipeline.train import train as train
    from ribseg.types import Adaptation as Adaptation
else:
    from ribseg.lazy import lazy_names

    __getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
