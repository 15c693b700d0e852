"""Reader of the classifier checkpoints released by RIB's and IRN's authors (`res50_cam.pth`)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ribseg.errors import ConfigError
from ribseg.models.classifier import Classifier
from ribseg.models.weights import load_released, renamed
from ribseg.models.weights_file import listed, places_of, read_file

# The released network registers each layer up to three times: in the ResNet, in its stage, and in the list of
# stages. Index of a module in stage 1 -> name of the layer.
STAGE1 = {"0": "conv1", "1": "bn1", "4": "layer1"}
LAYER = re.compile(r"^(resnet50|stage[1-4]|backbone\.[0-3])\.")
ALIASES = (
    (re.compile(r"^resnet50\."), ""),
    (re.compile(r"^(?:backbone\.0|stage1)\.([014])\."), None),
    (re.compile(r"^(?:backbone\.([123])|stage([234]))\.0\."), None),
    (re.compile(r"^(?:newly_added\.0|classifier)\."), "head."),
)


def load_official_classifier(path: str | Path) -> Classifier:
    """Builds the published ResNet-50 classifier from a released checkpoint.

    Args:
        path: `res50_cam.pth` or `res50_cam_coco.pth`; read with `weights_only=True`. The number of classes
            (20 or 80) is read from it.

    Returns:
        The classifier, in training mode like every new module (with frozen BatchNorm statistics).

    Raises:
        ConfigError: not such a checkpoint, incomplete, or two copies of a weight differ.
    """
    return official_classifier_of(read_file(path), path)


def official_classifier_of(content: Any, path: str | Path) -> Classifier:
    """The classifier in the content of a released checkpoint; see `load_official_classifier`.

    Args:
        content: of the file, as `read_file` gives it.
        path: of the file, for messages.
    """
    released = [place.tensors for place in places_of(content, path) if is_released(place.tensors)]
    if not released:
        raise ConfigError(
            f"{path} has no classifier.weight (C, D, 1, 1) and layers of a ResNet: it is not a checkpoint "
            f"of the released classifier, but {_kind(content, path)}"
        )
    state = released_state(released[0], path)
    classifier = Classifier("resnet50.tv_in1k", num_classes=len(state["head.weight"]))
    load_released(classifier, state, path, "the released ResNet-50 classifier")
    return classifier


def is_released(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dictionary has the names of the released classifier: its head and ResNet layers."""
    keys = {key.removeprefix("module."): value for key, value in state.items()}
    heads = [value for key, value in keys.items() if _canonical(key) == "head.weight" != key]
    return any(value.ndim == 4 and len(value) for value in heads) and any(map(LAYER.match, keys))


def released_state(state: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Returns the weights of a released checkpoint under the names of `Classifier`.

    Raises:
        ConfigError: two copies of a weight differ.
    """
    stage_of = {"layer3": 1, "layer4": 2}
    return {
        key
        if key.startswith("head.")
        else f"backbone.stages.{stage_of.get(key.split('.')[0], 0)}.{key}": value
        for key, value in renamed(state, _canonical, path).items()
        if not key.startswith("fc.")
    }


def _kind(content: Any, path: str | Path) -> str:
    """Describes a file that is not a released classifier, and the setting that reads it."""
    keys = [key for place in places_of(content, path) for key in place.tensors]
    if isinstance(content, Mapping) and str(content.get("kind")).startswith("ribseg segmenter"):
        return "a segmenter of ribseg"
    if isinstance(content, Mapping) and "pytorch-lightning_version" in content:
        return f"a Lightning checkpoint: load it with classifier.checkpoint={path}"
    if any(key.endswith("head.weight") for key in keys) and any("stages.0." in key for key in keys):
        return f"a classifier of ribseg: load it with classifier.checkpoint={path}"
    if any("fc_edge" in key for key in keys):
        return "the released IRNet (ribseg.models.load_official_irn reads it)"
    return (
        f"weights with the keys {listed(keys)}. If they are of a trained classifier: "
        f"classifier.checkpoint={path}; of a pretrained backbone: classifier.model.weights={path}"
    )


def _canonical(key: str) -> str:
    """The name shared by all copies of a weight: "layer3.0.conv1.weight", "head.weight"."""
    key = key.removeprefix("module.")
    for pattern, replacement in ALIASES:
        match = pattern.match(key)
        if not match:
            continue
        if replacement is None:
            groups = [group for group in match.groups() if group]
            replacement = _layer_name(key, groups[0]) + "."
        return replacement + key[match.end() :]
    return key


def _layer_name(key: str, index: str) -> str:
    if key.startswith(("backbone.0.", "stage1.")):
        return STAGE1[index]
    # stage2 is layer2; in the list of stages counted from zero it is entry 1.
    return f"layer{int(index) + 1 if key.startswith('backbone.') else int(index)}"
