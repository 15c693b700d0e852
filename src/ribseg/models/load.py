"""Networks back from the files that describe them."""

from pathlib import Path
from typing import Any

import torch

from ribseg.data.io.images import three
from ribseg.data.voc import VOC_CLASSES
from ribseg.errors import ConfigError
from ribseg.models.classifier import Classifier
from ribseg.models.described import build_errors, check_architecture, read_described
from ribseg.models.released.rib import is_released, load_official_classifier
from ribseg.models.segmenter import Segmenter, is_segmenter, load_segmenter
from ribseg.models.weights import fitting, load_fitting, places_of, read_file

NAMES = {len(VOC_CLASSES): VOC_CLASSES}  # number of classes of a released checkpoint -> their names


def load(path: str | Path, device: str | torch.device = "cpu") -> Classifier | Segmenter:
    """A classifier or a segmenter from one file, with names of classes, normalization and backbone.

    Args:
        path: what `save` of a classifier or a segmenter wrote, as the stages of a run do
            (`classifier.safetensors`, `segmenter.safetensors`); a `segmenter.pt` of a former version; or a
            classifier that RIB's and IRN's authors released (`res50_cam.pth`). Nothing in it is executed.
        device: where the network goes.

    Returns:
        The `Classifier` in evaluation mode, or the `ribseg.models.Segmenter`. A released classifier has names
        where it is of PASCAL VOC.

    Raises:
        ConfigError: no such file; damaged; or it holds weights alone, which no file says how to use.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no file at {file}; check the path")
    content = read_described(file) or read_file(file)
    if is_segmenter(content):
        return load_segmenter(file, device)
    if isinstance(content, dict) and content.get("kind") == "classifier":
        return _classifier(content, file).to(device).eval()
    if any(is_released(place.tensors) for place in places_of(content, file)):
        classifier = load_official_classifier(file)
        classifier.classes = NAMES.get(classifier.num_classes)
        return classifier.to(device).eval()
    raise ConfigError(
        f"{file} holds weights alone, without the network that they belong to. In Python: classifier = "
        "ribseg.Classifier(BACKBONE, num_classes=C, classes=[...]); "
        "ribseg.models.load_classifier(classifier, PATH). On the command line: python train.py "
        "experiment=... classifier.checkpoint=PATH run=[classifier] writes it with its description, as "
        "classifier.safetensors"
    )


def load_described_classifier(path: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """As `load`, for a classifier.

    Raises:
        ConfigError: see `load`; or it is a segmenter.
    """
    found = load(path, device)
    if isinstance(found, Segmenter):
        raise ConfigError(f"{path} is a segmenter, expected a classifier (classifier.safetensors of a run)")
    return found


def _classifier(content: dict[str, Any], path: Path) -> Classifier:
    check_architecture(path, "classifier", content.get("architecture"), [Classifier.architecture])
    with build_errors(path, content.get("settings")):
        mean, std = three(content["mean"]), three(content["std"])
        classifier = Classifier(**content["settings"], classes=content["classes"], mean=mean, std=std)
        found = fitting(classifier.state_dict(), path, [], "this classifier", content["state_dict"])
        load_fitting(classifier, found, path)
    return classifier
