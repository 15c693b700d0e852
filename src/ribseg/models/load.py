"""Trained segmenters; and how these and classifiers are loaded, from files with or without a description."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ribseg.data.class_names import class_order
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD, three
from ribseg.data.io.masks import voc_palette
from ribseg.data.voc import VOC_CLASSES
from ribseg.errors import ConfigError, reason
from ribseg.models.backbone import in_own_names
from ribseg.models.classifier import Classifier, ReCAMClassifier
from ribseg.models.deeplab import DeepLabV2
from ribseg.models.released import official_classifier, released_state
from ribseg.models.smp import SMPSegmenter
from ribseg.models.weights import fitting, load_fitting, load_match
from ribseg.models.weights_file import described, listed, read_file, write_described

KIND = "segmenter"
FORMER_KIND = "ribseg segmenter 1"  # in torch.save files of versions before 0.1.0
CLASSIFIERS: dict[str, Any] = {network.architecture: network for network in (Classifier, ReCAMClassifier)}
SEGMENTERS: dict[str, Any] = {network.architecture: network for network in (DeepLabV2, SMPSegmenter)}
NAMES = {len(VOC_CLASSES): VOC_CLASSES}  # number of classes of a released checkpoint -> class names


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A segmenter network with everything needed to use it.

    Attributes:
        model: (N, 3, H, W) normalised images -> (N, C+1, h, w) logits, label 0 is background.
        classes: C names, without background.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        palette: (256, 3) uint8 RGB colors of the labels.
        inference: default keyword arguments of `ribseg.models.inference.predict_labels`.
    """

    model: nn.Module
    classes: tuple[str, ...]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    palette: np.ndarray = field(default_factory=voc_palette)
    inference: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Writes the segmenter to one file, which `ribseg.load` reads.

        Args:
            path: must end in .safetensors; the file contains no code.

        Raises:
            ConfigError: another file extension; objects in settings or inference; or a model without
                `architecture` and `settings`, as `DeepLabV2` and `SMPSegmenter` have them.
            RibsegError: the file cannot be written.
        """
        about = described(KIND, self.model, self.classes, self.mean, self.std)
        if None in about.values():
            raise ConfigError(
                f"{type(self.model).__name__} cannot be described in a file: it needs `architecture` (a "
                "string) and `settings` (a dictionary), as DeepLabV2 and SMPSegmenter have them"
            )
        about |= {"palette": self.palette.tobytes().hex(), "inference": dict(self.inference)}
        write_described(path, about, self.model.state_dict())


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
    content = read_file(path)
    if _is_segmenter(content) or (isinstance(content, dict) and content.get("kind") == "classifier"):
        return _described(content, path, device)
    if released_state(content, path) is not None:
        classifier = official_classifier(content, path)
        classifier.classes = NAMES.get(classifier.num_classes)
        return classifier.to(device).eval()
    raise ConfigError(
        f"{path} holds weights alone, without a description of their network. In Python: classifier = "
        "ribseg.Classifier(BACKBONE, num_classes=C, classes=[...]); "
        "ribseg.models.load_into(classifier, PATH). On the command line: python train.py "
        "experiment=... classifier.checkpoint=PATH run=[classifier] writes a classifier.safetensors "
        "with its description"
    )


def load_classifier(path: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """Loads a classifier, as `load`.

    Raises:
        ConfigError: see `load`; or the file is a segmenter.
    """
    found = load(path, device)
    if isinstance(found, Segmenter):
        raise ConfigError(f"{path} is a segmenter, expected a classifier (classifier.safetensors of a run)")
    return found


def load_segmenter(path: str | Path, device: str | torch.device = "cpu") -> Segmenter:
    """Reads a file of `Segmenter.save`, without executing code from it.

    Args:
        path: of the file.
        device: of the loaded model.

    Returns:
        The segmenter, with its model in evaluation mode.

    Raises:
        ConfigError: no such file, or not a segmenter.
    """
    try:
        content = read_file(path)
    except ConfigError as error:
        raise ConfigError(f"expected a segmenter of ribseg, but {error}") from error
    if not _is_segmenter(content):
        raise ConfigError(
            f"{path} is not a segmenter of ribseg. Expected the segmenter.safetensors in a folder "
            "segmenter-*/ of the store; ribseg.models.Segmenter(model, classes, ...).save(PATH) writes one"
        )
    segmenter: Segmenter = _described(content, path, device)
    return segmenter


def load_into(classifier: nn.Module, path: str | Path, classes: Sequence[str] | None = None) -> list[str]:
    """Loads the backbone and head of a trained classifier; returns the ignored keys of the file.

    Where the file names its classes, the rows of the head are put in the order of `classes`.

    Args:
        classifier: a network of the same architecture and number of classes; changed in place.
        path: a `classifier.safetensors` of the store, a Lightning checkpoint, a state dictionary of this
            network or of timm's with its head, nested and prefixed in any way, or a released checkpoint
            (`res50_cam.pth`). A bias of the head is ignored: class maps have none.
        classes: C names in the order of the data; None for those of the classifier, if it has names.

    Returns:
        Keys of the head's bias, if there is one.

    Raises:
        ConfigError: the file cannot be read safely, belongs to another network, or has weights that are not
            finite.
        DataError: it names other classes.
    """
    content, what = read_file(path), "the configured classifier"
    named = content.get("classes") if isinstance(content, Mapping) and "kind" in content else None
    wanted = classes or getattr(classifier, "classes", None)
    content = released_state(content, path) or content
    if isinstance(classifier, Classifier) and named is None:
        content = in_own_names(content, path, classifier.backbone)
    if not isinstance(classifier, Classifier):
        load_fitting(classifier, path, what, content)
        if named and wanted and class_order(named, wanted, str(path)) != [*range(len(wanted))]:
            raise ConfigError(f"{path} has the classes in another order: {listed(named)}; name them so")
        return []
    what += f" over {classifier.backbone.name!r}"
    spellings = [classifier.timm_name, lambda key: key.removeprefix("backbone.")]
    match = fitting(classifier, path, what, content, spellings, optional=("head.bias",))
    known = len(match.tensors["head.weight"])
    if known != classifier.num_classes:
        raise ConfigError(
            f"{path} knows {known} classes, but the data has {classifier.num_classes}. To train a new head "
            f"over its backbone: classifier.checkpoint=null classifier.model.weights={path}"
        )
    spelled = match.names[next(key for key in match.names if key.startswith("backbone."))]
    if classifier.backbone.reads_class_token and "stages" not in spelled:
        raise ConfigError(
            f"the head in {path} is over the class token of {classifier.backbone.name!r}, and has no class "
            "maps: ours is over the average of the patches. If it was trained over the average, say so: "
            "backbone_kwargs={global_pool: avg, fc_norm: false}, or without fc_norm if the file has weights "
            f"of one. To train a new head over its backbone: classifier.model.weights={path}"
        )
    load_match(classifier, match, path)
    if named and wanted:
        classifier.reorder(class_order(named, wanted, str(path)))
    return match.left_out


def _is_segmenter(content: Any) -> bool:
    return isinstance(content, Mapping) and content.get("kind") in (KIND, FORMER_KIND)


def _described(content: Mapping[str, Any], path: str | Path, device: str | torch.device) -> Any:
    """The classifier or segmenter that a file describes, in evaluation mode."""
    kind, known = ("segmenter", SEGMENTERS) if _is_segmenter(content) else ("classifier", CLASSIFIERS)
    architecture, settings = content.get("architecture"), content.get("settings")
    if architecture not in list(known):  # it need not be hashable
        raise ConfigError(
            f"{path} holds a {kind} of the unknown architecture {architecture!r}; this version knows "
            f"{', '.join(known)}"
        )
    try:
        classes, mean, std = content["classes"], three(content["mean"]), three(content["std"])
        about = {"classes": classes, "mean": mean, "std": std} if kind == "classifier" else {}
        network = known[architecture](**content["settings"], **about)
        load_fitting(network, path, f"this {kind}", content["state_dict"])
        result = network
        if kind == "segmenter":
            palette, inference = _palette(content["palette"]), dict(content["inference"])
            result = Segmenter(network, tuple(map(str, classes)), mean, std, palette, inference)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        raise ConfigError(
            f"the weights in {path} do not fit their own settings {settings}; was the file written by "
            f"another version? {reason(error)}"
        ) from error
    network.to(device).eval()
    return result


def _palette(stored: str | torch.Tensor) -> np.ndarray:
    """(256, 3) uint8 from a hexadecimal string, or from the tensor of files before 0.1.0."""
    if isinstance(stored, str):
        return np.frombuffer(bytes.fromhex(stored), np.uint8).reshape(256, 3).copy()
    palette = stored.numpy()
    if palette.shape != (256, 3) or palette.dtype != np.uint8:
        raise ValueError(f"expected a palette (256, 3) of uint8, found {palette.dtype} {palette.shape}")
    return palette
