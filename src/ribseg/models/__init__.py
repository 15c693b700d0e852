"""Networks over timm: classifier, IRNet, PSA's network, segmenters; and readers of released checkpoints."""

from ribseg.models.attention import patch_attention
from ribseg.models.backbone import Backbone, load_weights
from ribseg.models.classifier import Classifier, ReCAMClassifier
from ribseg.models.clip import ClipTower
from ribseg.models.deeplab import DeepLabV2
from ribseg.models.irn import IRNet
from ribseg.models.load import Segmenter, load, load_into, load_segmenter
from ribseg.models.psa import PSANet
from ribseg.models.released import load_official_classifier, load_official_irn
from ribseg.models.smp import SMPSegmenter
from ribseg.models.text import TextEmbeddings, read_text_embeddings
from ribseg.models.toy import ToyNet
from ribseg.models.weights_file import read_state_dict

__all__ = [
    "Backbone",
    "Classifier",
    "ClipTower",
    "DeepLabV2",
    "IRNet",
    "PSANet",
    "ReCAMClassifier",
    "SMPSegmenter",
    "Segmenter",
    "TextEmbeddings",
    "ToyNet",
    "load",
    "load_into",
    "load_official_classifier",
    "load_official_irn",
    "load_segmenter",
    "load_weights",
    "patch_attention",
    "read_state_dict",
    "read_text_embeddings",
]
