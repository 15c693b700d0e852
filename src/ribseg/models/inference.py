"""Segmenter inference: multiple scales and flip, dense CRF, tiles.

The published test settings are in docs/method.md, section 6. All functions work with any network that maps
(N, 3, H, W) images to (N, C+1, h, w) logits.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ribseg.checks import check_arguments, check_number, check_numbers, check_switch
from ribseg.data.class_names import indices_of
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD, Channels, read_image
from ribseg.data.io.masks import read_mask
from ribseg.errors import ConfigError, DataError
from ribseg.functional import dense_crf
from ribseg.functional.cam import resize
from ribseg.functional.dense_crf import check_dense_crf
from ribseg.functional.state import evaluating
from ribseg.memory import memory_errors, usable_device
from ribseg.models.load import Segmenter, load_segmenter

ImageLike = str | Path | np.ndarray
MaskLike = str | Path | npt.NDArray[np.uint8]
# Published test settings, for `crf=`.
PUBLISHED_CRF = {
    "iterations": 10, "gaussian_sxy": 1, "gaussian_compat": 3,
    "bilateral_sxy": 67, "bilateral_srgb": 3, "bilateral_compat": 4,
}  # fmt: skip

SMALLEST_TILE = 16
INFERENCE = ("scales", "flip", "crf", "tile", "margin")  # settings of `check_inference`
TRUST = 0.45  # see `predict_labels`
SMALLER_TILES = "Cut the image into smaller tiles (tile=512, --tile 512)"


class Tile(NamedTuple):
    """A part of an image that is predicted at once, as indices of rows and columns.

    Attributes:
        seen: what the network gets of the image.
        kept: the part of the image that gets its labels; the rest is context.
        inside: the same part within the tile's output.
    """

    seen: tuple[slice, slice]
    kept: tuple[slice, slice]
    inside: tuple[slice, slice]


@overload
def predict(
    images: ImageLike,
    checkpoint: str | Path | Segmenter,
    *,
    labels: Sequence[str | int] | None = None,
    masks: MaskLike | None = None,
    device: str | torch.device | None = None,
    **settings: Any,
) -> npt.NDArray[np.uint8]: ...
@overload
def predict(
    images: Sequence[ImageLike],
    checkpoint: str | Path | Segmenter,
    *,
    labels: Sequence[Sequence[str | int]] | None = None,
    masks: Sequence[MaskLike] | None = None,
    device: str | torch.device | None = None,
    **settings: Any,
) -> list[npt.NDArray[np.uint8]]: ...
def predict(
    images: ImageLike | Sequence[ImageLike],
    checkpoint: str | Path | Segmenter,
    *,
    labels: Sequence[str | int] | Sequence[Sequence[str | int]] | None = None,
    masks: MaskLike | Sequence[MaskLike] | None = None,
    device: str | torch.device | None = None,
    **settings: Any,
) -> npt.NDArray[np.uint8] | list[npt.NDArray[np.uint8]]:
    """Segments images with a trained segmenter.

    Args:
        images: a path, or an (H, W, 3) uint8 RGB array, or several of them.
        checkpoint: `segmenter.safetensors` of a segmenter stage, or a loaded `Segmenter`.
        labels: names or indices of the classes in the image, as in `ribseg.localize`, or a sequence of them
            for each image; the mask has no others. None: any class of the segmenter.
        masks: the (H, W) uint8 mask, or its PNG, that the image has already, as from its class maps, or one
            for each image; see `mask` of `predict_labels`.
        device: to compute on; None for a GPU if there is one. A loaded segmenter stays on its device.
        settings: scales, flip, crf, tile, margin and trust of `predict_labels`; the defaults are in the
            checkpoint, as the segmenter was tested.

    Returns:
        (H, W) uint8 labels, 0 background, c + 1 class c; a list of them for several images.

    Raises:
        ConfigError: the checkpoint cannot be used, a setting is invalid, or labels are unknown, or labels or
            masks are not one per image.
        DataError: an image cannot be read, or a mask does not belong to it.
        DeviceMemoryError: an image does not fit into the device's memory.
    """
    if not isinstance(checkpoint, Segmenter):
        checkpoint = load_segmenter(checkpoint, usable_device(device))
    if isinstance(images, str | Path | np.ndarray):
        alone: Any = None if labels is None else [labels]
        given: Any = None if masks is None else [masks]
        return predict([images], checkpoint, labels=alone, masks=given, **settings)[0]
    images = list(images)
    names, earlier = checkpoint.classes, _one_each("masks", masks, len(images))
    present = [_present(each, names) for each in _one_each("labels", labels, len(images))]
    settings = {"mean": checkpoint.mean, "std": checkpoint.std, **checkpoint.inference, **settings}
    check_inference(**{name: settings[name] for name in INFERENCE if name in settings})
    return [
        predict_labels(
            checkpoint.model,
            image if isinstance(image, np.ndarray) else read_image(image),
            classes=classes,
            mask=read_mask(mask) if isinstance(mask, str | Path) else mask,
            **settings,
        )
        for image, classes, mask in zip(images, present, earlier, strict=True)
    ]


def _one_each(argument: str, values: Any, number: int) -> list[Any]:
    """What belongs to each image; raises a ConfigError unless it is as many as there are images, or None."""
    if values is None:
        return [None] * number
    several = isinstance(values, Sequence) and not isinstance(values, str)
    several = several or (isinstance(values, np.ndarray) and values.ndim > 0)
    if not several or len(values) != number:
        found = len(values) if several else type(values).__name__
        raise ConfigError(f"{argument}: expected one for each of {number} images, got {found}")
    return list(values)


def _present(labels: Any, names: Sequence[str]) -> list[int] | None:
    """The indices of the classes of an image, which may be none; None where they are not known."""
    if labels is None or (isinstance(labels, list | tuple | set) and not labels):
        return None if labels is None else []
    return indices_of(labels, names, len(names))


def predict_labels(
    model: nn.Module,
    image: np.ndarray,
    *,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    crf: Mapping[str, Any] | None = None,
    tile: int | None = None,
    margin: int | None = None,
    classes: Sequence[int] | None = None,
    mask: np.ndarray | None = None,
    trust: float | None = None,
) -> npt.NDArray[np.uint8]:
    """Predicts the labels of one image.

    Args:
        model: (N, 3, H, W) images -> (N, C+1, h, w) logits; computes on the device of its parameters.
        image: (H, W, 3) uint8 RGB.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        scales: see `class_probabilities`.
        flip: see `class_probabilities`.
        crf: settings of `dense_crf` on the probabilities, e.g. `PUBLISHED_CRF`; None disables it.
        tile: images with a longer side than this many pixels are split into tiles, which bounds the memory;
            None disables tiling.
        margin: pixels of context around the kept part of a tile; None for an eighth of `tile`. Below the
            network's receptive field the result differs near the seams.
        classes: indices from 0 to C - 1 of those in the image; other probabilities are left out. None: all.
        mask: (H, W) uint8 labels that the image has already, 255 unknown; the result is the most probable
            label by the mean of it and the probabilities.
        trust: weight of `mask` in that mean, in [0, 1]; above 0.5 it stays, before a CRF. None: 0.45, the
            best of five weights on photographs of VOC's train.

    Returns:
        (H, W) uint8.

    Raises:
        ConfigError: see `class_probabilities` and `tiles`.
        DataError: not an (H, W, 3) uint8 image, or a mask of another size, or with other labels.
        DeviceMemoryError: the image, or a tile, does not fit into the device's memory.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise DataError(f"expected an image (H, W, 3) of uint8, got {image.dtype} {image.shape}")
    check_number("trust", trust, low=0, high=1, words=(None,))
    if trust is not None and mask is None:
        raise ConfigError(f"trust={trust} is the weight of a mask, and there is none")
    if mask is not None and not isinstance(mask, np.ndarray):
        raise DataError(f"expected a mask of uint8 {image.shape[:2]}, got {type(mask).__name__}")
    if mask is not None and (mask.shape != image.shape[:2] or mask.dtype != np.uint8):
        hint = " (has the photograph an EXIF rotation, and the mask none?)"
        turned = hint * (mask.shape == image.shape[1::-1])
        raise DataError(f"expected a mask of uint8 {image.shape[:2]}, got {mask.dtype} {mask.shape}{turned}")
    labels = np.empty(image.shape[:2], np.uint8)
    for part in tiles((image.shape[0], image.shape[1]), tile, margin):
        pixels = np.ascontiguousarray(image[part.seen])
        work = f"{pixels.shape[0]} x {pixels.shape[1]} pixels at once"
        with memory_errors(next(model.parameters()).device, work, SMALLER_TILES):
            probabilities = class_probabilities(model, normalized(model, pixels, mean, std), scales, flip)
            names = range(len(probabilities) - 1) if classes is None else sorted(set(classes))
            for index in names:
                check_number("classes", index, low=0, high=len(probabilities) - 2, whole=True)
            numbers = np.array([0, *(index + 1 for index in names)], np.uint8)
            known = None if mask is None else mask[part.seen]
            values = informed(probabilities, numbers, known, trust)
            labels[part.kept] = numbers[most_probable(pixels, values, crf)][part.inside]
    return labels


def check_inference(
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    crf: Mapping[str, Any] | None = None,
    tile: int | None = None,
    margin: int | None = None,
) -> None:
    """Raises a ConfigError unless the settings of `predict_labels` are in range.

    Args:
        scales: see `predict_labels`.
        flip: see `predict_labels`.
        crf: see `predict_labels`.
        tile: see `predict_labels`; at least 16 pixels.
        margin: see `predict_labels`.
    """
    check_numbers("scales", scales, above=0)
    check_switch("flip", flip)
    check_arguments(check_dense_crf, "crf", crf)
    check_number("tile", tile, low=SMALLEST_TILE, whole=True, words=(None,))
    check_number("margin", margin, low=0, whole=True, words=(None,))
    if tile is not None:
        margin_of(tile, margin)


def normalized(model: nn.Module, image: np.ndarray, mean: Channels, std: Channels) -> Tensor:
    """Normalizes an (H, W, 3) uint8 image to (3, H, W) float32 on the model's device."""
    device = next(model.parameters()).device
    pixels = torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255
    shift, scale = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))
    return (pixels - shift) / scale


@torch.no_grad()
def class_probabilities(
    model: nn.Module, image: Tensor, scales: Sequence[float] = (1.0,), flip: bool = True
) -> Tensor:
    """Label probabilities averaged over scales and mirror images.

    Args:
        model: used in evaluation mode; its mode is restored.
        image: (3, H, W) normalised.
        scales: published (0.5, 0.75, 1); the image is resized bilinearly.
        flip: average with the mirror image.

    Returns:
        (C+1, H, W) float32, summing to one.

    Raises:
        ConfigError: no scales, or one that is not positive.
    """
    check_numbers("scales", scales, above=0)
    check_switch("flip", flip)
    size = (image.shape[1], image.shape[2])
    total: Tensor | None = None
    with evaluating(model):
        for scale in scales:
            small = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
            view = (image if small == size else resize(image, small))[None]
            for mirrored in (False, True) if flip else (False,):
                logits = model(view.flip(-1) if mirrored else view)[0].float()
                part = resize(logits.flip(-1) if mirrored else logits, size).softmax(0)
                total = part if total is None else total.add_(part)
    assert total is not None  # there is a scale
    return total / (len(scales) * (1 + flip))


def informed(
    probabilities: Tensor, numbers: np.ndarray, mask: np.ndarray | None = None, trust: float | None = None
) -> Tensor:
    """(K, H, W) probabilities of the K labels that an image may have, given a mask that it has already.

    Args:
        probabilities: (C+1, H, W), summing to one.
        numbers: (K,) labels.
        mask: see `predict_labels`.
        trust: see `predict_labels`.

    Raises:
        DataError: the mask has other labels.
    """
    if len(numbers) < len(probabilities):
        # Plus a small number, where the labels that are left out have it all.
        probabilities = probabilities[numbers.tolist()] + torch.finfo(probabilities.dtype).tiny
        probabilities = probabilities / probabilities.sum(0)
    if mask is None:
        return probabilities
    foreign = sorted(set(np.unique(mask).tolist()) - {*numbers.tolist(), 255})
    if foreign:
        raise DataError(f"expected a mask with the labels {numbers.tolist()} and 255, got {foreign}, too")
    given = torch.from_numpy(mask.copy()).to(probabilities.device)
    certain = torch.stack([given == number for number in numbers.tolist()])
    weight = TRUST if trust is None else trust
    return torch.where(given == 255, probabilities, weight * certain + (1 - weight) * probabilities)


def most_probable(
    image: np.ndarray, probabilities: Tensor | np.ndarray, crf: Mapping[str, Any] | None = None
) -> np.ndarray:
    """(C+1, H, W) probabilities -> (H, W) uint8 labels, optionally after a dense CRF on the image."""
    values = torch.as_tensor(probabilities).float()
    if crf is not None:
        values = dense_crf(image, values, **crf)
    return values.argmax(0).to(torch.uint8).cpu().numpy()


def tiles(size: tuple[int, int], tile: int | None, margin: int | None = None) -> Iterator[Tile]:
    """Yields tiles whose kept parts cover an image exactly once.

    Args:
        size: (H, W).
        tile: longest side of a tile in pixels; None for one tile.
        margin: see `predict_labels`.

    Raises:
        ConfigError: the margins leave nothing of a tile.

    >>> [(tile.seen[1], tile.kept[1]) for tile in tiles((4, 10), 6, 1)]
    [(slice(0, 6, None), slice(0, 5, None)), (slice(4, 10, None), slice(5, 10, None))]
    """
    margin = 0 if tile is None else margin_of(tile, margin)
    rows, columns = (_spans(length, tile or length, margin) for length in size)
    for down, across in product(rows, columns):
        yield Tile(*zip(down, across, strict=True))


def margin_of(tile: int, margin: int | None) -> int:
    """The margin of a tile in pixels; raises a ConfigError if it leaves nothing of the tile."""
    check_number("tile", tile, low=1, whole=True)
    check_number("margin", margin, low=0, whole=True, words=(None,))
    margin = tile // 8 if margin is None else margin
    if tile - 2 * margin < 1:
        raise ConfigError(f"expected tile > 2 * margin >= 0, got tile={tile} and margin={margin}")
    return margin


def _spans(length: int, tile: int, margin: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yields `seen`, `kept` and `inside` of the tiles along one side; tiles have full length."""
    kept = 0
    while kept < length:
        begin = max(0, min(kept - margin, length - tile))
        end = min(begin + tile, length)
        keep_to = length if end == length else end - margin
        yield slice(begin, end), slice(kept, keep_to), slice(kept - begin, keep_to - begin)
        kept = keep_to
