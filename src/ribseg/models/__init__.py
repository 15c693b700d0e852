"""Networks over timm backbones: classifier, IRNet, PSA's network; and readers of released checkpoints."""

from ribseg.models.affinity_net import AffinityNet
from ribseg.models.backbone import Backbone, load_weights, read_state_dict
from ribseg.models.classifier import Classifier, set_batch_norm_eval
from ribseg.models.irn import IRNet, load_official_irn
from ribseg.models.official import load_official_classifier
from ribseg.models.toy import ToyNet

__all__ = [
    "AffinityNet",
    "Backbone",
    "Classifier",
    "IRNet",
    "ToyNet",
    "load_official_classifier",
    "load_official_irn",
    "load_weights",
    "read_state_dict",
    "set_batch_norm_eval",
]
