"""Classifiers with their pretrained ImageNet head: localization maps without any training."""

from functools import lru_cache

from timm.data import ImageNetInfo

from ribseg.errors import ConfigError
from ribseg.models.backbone import create_network
from ribseg.models.checkpoint import load_classifier
from ribseg.models.classifier import Classifier
from ribseg.models.packages import PACKAGED
from ribseg.models.weights import fitting, load_fitting

CLASSES = 1000


@lru_cache(maxsize=1)
def imagenet_names() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, such as "tabby, tabby cat"."""
    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index) for index in range(CLASSES))


def imagenet_classifier(name: str) -> Classifier:
    """A classifier of ImageNet's 1,000 classes, in evaluation mode.

    The last stages are dilated to an output stride of 16, which keeps their receptive fields: removing
    strides without dilation, as in the published recipe, requires training. The head's bias is ignored.

    Args:
        name: "efficientnet_lite0" to "efficientnet_lite2" (weights of the extra `ribseg[weights]`), or a timm
            CNN with a tag of ImageNet-1k weights, such as "resnet50.tv_in1k", downloaded once.

    Raises:
        ConfigError: the weights are not available, or the network cannot be used.
    """
    if name in PACKAGED:
        classifier = Classifier(PACKAGED[name], CLASSES, atrous=True, classes=imagenet_names())
        load_classifier(classifier, name)
        return classifier.eval()
    classifier = Classifier(name, CLASSES, atrous=True, classes=imagenet_names())
    whole = create_network(name, True, {})  # with its head, so the backbone needs no weights before
    known = getattr(whole, "num_classes", None)
    if known != CLASSES:
        raise ConfigError(f"expected weights with the {CLASSES} classes of ImageNet, {name} has {known}")
    what = f"the classifier over {name!r}"
    found = fitting(
        classifier.state_dict(), name, [classifier.timm_name], what, whole.state_dict(), ("head.bias",)
    )
    load_fitting(classifier, found, name)
    return classifier.eval()
