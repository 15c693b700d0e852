"""Classifiers with their pretrained ImageNet head: localization maps without any training."""

from functools import lru_cache
from typing import Any

import torch
from timm.data import ImageNetInfo

from ribseg.errors import ConfigError
from ribseg.models.backbone import create_network
from ribseg.models.classifier import Classifier
from ribseg.models.load import load_into
from ribseg.models.packages import PACKAGED
from ribseg.models.tokens import family_of, token_stride
from ribseg.models.weights import load_fitting

CLASSES = 1000


@lru_cache(maxsize=1)
def imagenet_names() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, such as "tabby, tabby cat"."""
    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index) for index in range(CLASSES))


def imagenet_classifier(name: str) -> Classifier:
    """A classifier of ImageNet's 1,000 classes, in evaluation mode.

    The last stages are dilated to an output stride of 16, which keeps their receptive fields: removing
    strides without dilation, as in the published recipe, requires training. A transformer keeps its own. The
    head's bias is ignored.

    Args:
        name: "efficientnet_lite0" to "efficientnet_lite2" (weights of the extra `ribseg[weights]`), or a timm
            CNN, or a transformer whose head takes the average of its patches, with a tag of ImageNet-1k
            weights, such as "resnet50.tv_in1k" or "swin_tiny_patch4_window7_224.ms_in1k", downloaded once.

    Raises:
        ConfigError: the weights are not available, or the network cannot be used.
    """
    if name in PACKAGED:
        classifier = Classifier(PACKAGED[name], CLASSES, atrous=True, classes=imagenet_names())
        load_into(classifier, name)
        return classifier.eval()
    whole = create_network(name, True, {})  # with its head, so the backbone needs no weights before
    reached: dict[str, Any] = {"output_stride": token_stride(whole)} if family_of(name) else {"atrous": True}
    classifier = Classifier(name, CLASSES, **reached, classes=imagenet_names())
    known = getattr(whole, "num_classes", None)
    if known != CLASSES:
        raise ConfigError(f"expected weights with the {CLASSES} classes of ImageNet, {name} has {known}")
    state, what = whole.state_dict(), f"the classifier over {name!r}"
    load_fitting(classifier, name, what, state, [classifier.timm_name], ("head.bias",))
    if family_of(name):
        _check_head(name, classifier.eval(), whole.eval())
    return classifier.eval()


@torch.no_grad()
def _check_head(name: str, classifier: Classifier, whole: Any) -> None:
    """Raises a ConfigError unless timm's logits are averages of the class maps, but for the head's bias."""
    images = torch.randn(1, *whole.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    expected, found = whole(images), classifier(images)
    bias = whole.state_dict().get(classifier.timm_name("head.bias"), torch.zeros(CLASSES))
    if not torch.allclose(found + bias, expected, rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"the head of {name} does not take the average of the patches, but a class token or another "
            "pooling, so it gives no class maps; train a head over its backbone "
            "(classifier.model.backbone), or use a Swin or CNN with a tag of ImageNet-1k weights"
        )
