"""Loads classifiers and segmenters from self-describing files."""

from pathlib import Path
from typing import Any

import torch

from ribseg.data.io.images import three
from ribseg.data.voc import VOC_CLASSES
from ribseg.errors import ConfigError
from ribseg.models.classifier import Classifier
from ribseg.models.described import build_errors, check_architecture, read_described
from ribseg.models.recam import ReCAMClassifier
from ribseg.models.released.rib import is_released, official_classifier_of
from ribseg.models.segmenter import Segmenter, is_segmenter, segmenter_of
from ribseg.models.weights import fitting, load_fitting
from ribseg.models.weights_file import places_of, read_file

ARCHITECTURES: dict[str, type[Classifier]] = {
    network.architecture: network for network in (Classifier, ReCAMClassifier)
}
NAMES = {len(VOC_CLASSES): VOC_CLASSES}  # number of classes of a released checkpoint -> class names


def load(path: str | Path, device: str | torch.device = "cpu") -> Classifier | Segmenter:
    """Loads a classifier or segmenter from one file, with class names, normalization and backbone.

    Args:
        path: of a file of `Classifier.save` or `Segmenter.save`, as the stages write them
            (`classifier.safetensors`, `segmenter.safetensors`); a `segmenter.pt` of a former version; or a
            classifier released by RIB's and IRN's authors (`res50_cam.pth`). No code in it is executed.
        device: of the loaded network.

    Returns:
        The `Classifier` in evaluation mode, or the `ribseg.models.Segmenter`. A released classifier has class
        names if it is of PASCAL VOC.

    Raises:
        ConfigError: no such file, damaged, or weights without a description of their network.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no file at {file}; check the path")
    content = read_described(file) or read_file(file)
    if is_segmenter(content):
        return segmenter_of(content, file, device)
    if isinstance(content, dict) and content.get("kind") == "classifier":
        return _classifier(content, file).to(device).eval()
    if any(is_released(place.tensors) for place in places_of(content, file)):
        classifier = official_classifier_of(content, file)
        classifier.classes = NAMES.get(classifier.num_classes)
        return classifier.to(device).eval()
    raise ConfigError(
        f"{file} holds weights alone, without a description of their network. In Python: classifier = "
        "ribseg.Classifier(BACKBONE, num_classes=C, classes=[...]); "
        "ribseg.models.load_classifier(classifier, PATH). On the command line: python train.py "
        "experiment=... classifier.checkpoint=PATH run=[classifier] writes a classifier.safetensors "
        "with its description"
    )


def load_described_classifier(path: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """Loads a classifier, as `load`.

    Raises:
        ConfigError: see `load`; or the file is a segmenter.
    """
    found = load(path, device)
    if isinstance(found, Segmenter):
        raise ConfigError(f"{path} is a segmenter, expected a classifier (classifier.safetensors of a run)")
    return found


def _classifier(content: dict[str, Any], path: Path) -> Classifier:
    architecture = content.get("architecture")
    check_architecture(path, "classifier", architecture, list(ARCHITECTURES))
    with build_errors(path, content.get("settings")):
        mean, std = three(content["mean"]), three(content["std"])
        network = ARCHITECTURES[str(architecture)]
        classifier = network(**content["settings"], classes=content["classes"], mean=mean, std=std)
        found = fitting(classifier.state_dict(), path, [], "this classifier", content["state_dict"])
        load_fitting(classifier, found, path)
    return classifier
