"""The classes that a classifier predicts for an image."""

import torch
from torch import Tensor, nn

from ribseg.checks import check_number
from ribseg.functional.cam import class_maps
from ribseg.functional.state import evaluating
from ribseg.methods.cam import features_of, head_of
from ribseg.models.imagenet import imagenet_names

PROBABLE = 0.1  # lowest probability of predicted classes with a softmax head


@torch.no_grad()
def predicted_classes(classifier: nn.Module, view: Tensor, top: int) -> list[int]:
    """Indices of the classes that a classifier predicts, ascending; at least the most probable one.

    Args:
        classifier: any module with `features(x)` and `weight`. With ImageNet's class names it is treated as a
            softmax classifier with a probability threshold of 0.1, else as sigmoid with a threshold of 0.5.
        view: (2, 3, h, w), image and mirror image, normalised.
        top: largest number of classes.

    Raises:
        ConfigError: `top` is not a positive integer.
    """
    check_number("top", top, low=1, whole=True)
    with evaluating(classifier):
        logits = class_maps(features_of(classifier)(view), head_of(classifier)).float().mean((0, 2, 3))
    softmax = getattr(classifier, "classes", None) == imagenet_names()
    probabilities = logits.softmax(0) if softmax else logits.sigmoid()
    best = probabilities.topk(min(top, len(probabilities)))
    lowest = PROBABLE if softmax else 0.5
    found = [i for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True) if p >= lowest]
    return sorted(found or best.indices[:1].tolist())
