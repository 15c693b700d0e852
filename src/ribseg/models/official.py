"""Reader of the classifier checkpoints that RIB's and IRN's authors released (`res50_cam.pth`)."""

import re
from pathlib import Path

import torch
from torch import Tensor

from ribseg.errors import ConfigError
from ribseg.models.backbone import load_released, read_state_dict
from ribseg.models.classifier import Classifier

# The released network registers each layer up to three times: under the ResNet, under its stage, and under
# the list of stages. Index of a module in a stage -> name of the layer.
STAGE1 = {"0": "conv1", "1": "bn1", "4": "layer1"}
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
        The classifier, in training mode as every new module (its BatchNorm statistics are frozen anyway).

    Raises:
        ConfigError: not such a checkpoint, incomplete, or its duplicate keys contradict each other.
    """
    weights = _canonical(read_state_dict(path), path)
    head = weights.get("head.weight")
    if head is None or head.ndim != 4 or len(head) == 0:
        raise ConfigError(
            f"{path} has no classifier.weight (C, D, 1, 1): it is not a checkpoint of the released classifier"
        )
    classifier = Classifier("resnet50.tv_in1k", num_classes=len(head))
    stage_of = {"layer3": 1, "layer4": 2}
    state = {
        key
        if key.startswith("head.")
        else f"backbone.stages.{stage_of.get(key.split('.')[0], 0)}.{key}": value
        for key, value in weights.items()
        if not key.startswith("fc.")
    }
    load_released(classifier, state, path, "the released ResNet-50 classifier")
    return classifier


def _canonical(state: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _rename(key)
        if name in weights and not torch.equal(weights[name], value):
            raise ConfigError(
                f"{path} holds {name!r} twice with different values (again as {key!r}); the released program "
                "writes equal copies. Save the checkpoint again from one model."
            )
        weights[name] = value
    return weights


def _rename(key: str) -> str:
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
