"""Readers of the checkpoints that RIB's and IRN's authors released: `res50_cam.pth` and `res50_irn.pth`.

The released networks register each layer up to three times: in the ResNet, in its stage, and in a list of
stages or layers. Tables of regular expressions, used one after the other, say how each copy is called here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ribseg.errors import ConfigError
from ribseg.models.backbone import Backbone
from ribseg.models.classifier import Classifier
from ribseg.models.irn import IRNet
from ribseg.models.weights import load_fitting
from ribseg.models.weights_file import listed, places_of, read_file, read_state_dict

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
Table = Sequence[Rule]
LAYER = re.compile(r"^(module\.)?(resnet50|stage[1-4]|backbone\.[0-3])\.")
HEADS = ("classifier.weight", "newly_added.0.weight")
STAGE_OF = {"layer3": 1, "layer4": 2}  # all other layers of the ResNet are in the trunk, stage 0
IN_STAGE1 = {"0": "conv1", "1": "bn1", "4": "layer1"}  # index of a module in the classifier's first stage
OURS: Rule = (r"^resnet50\.(\w+)\.", lambda m: f"backbone.stages.{STAGE_OF.get(m[1], 0)}.{m[1]}.")
# stage2 of the classifier is layer2; in its list of stages, counted from zero, it is entry 1.
CLASSIFIER: Table = (
    (r"^(?:backbone\.0|stage1)\.([014])\.", lambda m: f"resnet50.{IN_STAGE1[m[1]]}."),
    (r"^backbone\.([123])\.0\.", lambda m: f"resnet50.layer{int(m[1]) + 1}."),
    (r"^stage([234])\.0\.", r"resnet50.layer\1."),
    (r"^(?:newly_added\.0|classifier)\.", "head."),
    OURS,
)
# The mean displacement lies under its own name and as the last layer of the displacement branch.
IRN: Table = (
    (r"^edge_layers\.(\d)\.", lambda m: f"fc_edge{int(m[1]) + 1}."),
    (r"^dp_layers\.(\d)\.", lambda m: f"fc_dp{int(m[1]) + 1}."),
    (r"^(?:backbone\.0|stage1)\.([01])\.", lambda m: f"resnet50.{IN_STAGE1[m[1]]}."),
    (r"^backbone\.([1-4])\.0\.", r"resnet50.layer\1."),
    (r"^stage([2-5])\.0\.", lambda m: f"resnet50.layer{int(m[1]) - 1}."),
    (r"^fc_edge([1-5])\.", lambda m: f"boundary.levels.{int(m[1]) - 1}."),
    (r"^fc_edge6\.", "boundary.final."),
    (r"^fc_dp([1-5])\.", lambda m: f"displacement.levels.{int(m[1]) - 1}."),
    (r"^fc_dp6\.", "displacement.deep."),
    (r"^fc_dp7\.(?=[01]\.)", "displacement.merge."),
    (r"^fc_dp7\.3\.", "displacement.final."),
    (r"^(?:mean_shift|fc_dp7\.4)\.running_mean$", "displacement_mean"),
    OURS,
)
# The ResNet's unused ImageNet head, and constant buffers of IRN's training program.
LEFT_OUT = re.compile(r"^(?:module\.)?((resnet50\.)?fc\.|path_indices\d+$|disp_target$)")


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
    return official_classifier(read_file(path), path)


def load_official_irn(path: str | Path) -> IRNet:
    """Builds the published ResNet-50 IRNet from a released checkpoint.

    Args:
        path: `res50_irn.pth`; read with `weights_only=True`.

    Raises:
        ConfigError: not such a checkpoint, incomplete, or two copies of a weight differ.
    """
    network = IRNet(Backbone("resnet50.tv_in1k", output_stride=16))
    _load(network, _renamed(read_state_dict(path), IRN, path), path, "the released ResNet-50 IRNet")
    return network


def official_classifier(content: Any, path: str | Path) -> Classifier:
    """The classifier in the content of a released checkpoint; see `load_official_classifier`.

    Args:
        content: of the file, as `read_file` gives it.
        path: of the file, for messages.
    """
    state = released_state(content, path)
    if state is None:
        raise ConfigError(
            f"{path} has no classifier.weight (C, D, 1, 1) and layers of a ResNet: it is not a checkpoint "
            f"of the released classifier, but {_kind(content, path)}"
        )
    classifier = Classifier("resnet50.tv_in1k", num_classes=len(state["head.weight"]))
    _load(classifier, state, path, "the released ResNet-50 classifier")
    return classifier


def released_state(content: Any, path: str | Path) -> dict[str, Tensor] | None:
    """The weights of a released classifier under the names of `Classifier`; None in other files.

    The file is known by the names of its head and layers.

    Raises:
        ConfigError: two copies of a weight differ.
    """
    for place in places_of(content, path):
        heads = [value for key, value in place.tensors.items() if key.removeprefix("module.") in HEADS]
        if any(map(LAYER.match, place.tensors)) and any(head.ndim == 4 and len(head) for head in heads):
            return _renamed(place.tensors, CLASSIFIER, path)
    return None


def _renamed(state: Mapping[str, Tensor], table: Table, path: str | Path) -> dict[str, Tensor]:
    """The weights under our names, each once."""
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        if LEFT_OUT.match(key):
            continue
        name = key.removeprefix("module.")
        for pattern, ours in table:
            name = re.sub(pattern, ours, name)
        if name in weights and not torch.equal(weights[name], value):
            raise ConfigError(
                f"{path} holds {name!r} twice with different values (again as {key!r}); the released program "
                "writes equal copies. Save the checkpoint again from one model."
            )
        weights[name] = value
    return weights


def _load(network: nn.Module, state: Mapping[str, Tensor], path: str | Path, what: str) -> None:
    """Loads renamed weights; BatchNorm counters may be missing, but no weight may be unknown."""
    if unknown := sorted(state.keys() - network.state_dict().keys()):
        raise ConfigError(f"{path} is not a checkpoint of {what}: {len(unknown)} are unknown {unknown[:3]}")
    load_fitting(network, path, what, state)


def _kind(content: Any, path: str | Path) -> str:
    """Describes a file that is not a released classifier, and the setting that reads it."""
    keys = [key for place in places_of(content, path) for key in place.tensors]
    if isinstance(content, Mapping) and "segmenter" in str(content.get("kind")):
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
