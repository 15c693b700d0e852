"""Loads trained classifiers: from ribseg, Lightning or timm, or the released checkpoints."""

from pathlib import Path

from torch import nn

from ribseg.errors import ConfigError
from ribseg.models.classifier import Classifier
from ribseg.models.released.rib import is_released, released_state
from ribseg.models.weights import fitting, load_fitting
from ribseg.models.weights_file import places_of, read_file


def load_classifier(classifier: nn.Module, path: str | Path) -> list[str]:
    """Loads the backbone and head of a trained classifier; returns the ignored keys of the file.

    Args:
        classifier: a network of the same architecture and number of classes; changed in place.
        path: a `classifier.safetensors` of the store, a Lightning checkpoint, a state dictionary of this
            network or of timm's with its head, nested and prefixed in any way, or a released checkpoint
            (`res50_cam.pth`). A bias of the head is ignored: class maps have none.

    Returns:
        Keys of the head's bias, if there is one.

    Raises:
        ConfigError: the file cannot be read safely, belongs to another network or other classes, or has
            weights that are not finite.
    """
    content, what = read_file(path), "the configured classifier"
    released = [place.tensors for place in places_of(content, path) if is_released(place.tensors)]
    if released:
        content = released_state(released[0], path)
    state = classifier.state_dict()
    if not isinstance(classifier, Classifier):
        load_fitting(classifier, fitting(state, path, [], what, content), path)
        return []
    what += f" over {classifier.backbone.name!r}"
    spellings = [classifier.timm_name, lambda key: key.removeprefix("backbone.")]
    match = fitting(state, path, spellings, what, content, optional=("head.bias",))
    known = len(match.tensors["head.weight"])
    if known != classifier.num_classes:
        raise ConfigError(
            f"{path} knows {known} classes, but the data has {classifier.num_classes}. To train a new head "
            f"over its backbone: classifier.checkpoint=null classifier.model.weights={path}"
        )
    load_fitting(classifier, match, path)
    return match.left_out
