"""Gray images of scores; saliency maps of other programs are such PNGs, `<image id>.png`."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.data.io.images import load_pixels, open_image
from ribseg.errors import DataError

SCALED = 0.5  # that some pixel of a folder of maps or gray images reaches, if these are from 0 to 1


def read_gray(path: str | Path) -> np.ndarray:
    """Reads a gray image of 1 to 16 bit as scores; black is 0, white is 1.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        DataError: if the file is missing or broken, or is a palette or colour image.
    """
    with open_image(path) as image:
        load_pixels(image, path)
        mode, pixels = image.mode, np.array(image)
    if mode == "RGB" and (pixels == pixels[..., :1]).all():
        mode, pixels = "L", pixels[..., 0]  # gray saved as RGB, as some programs do
    if mode in ("1", "L"):
        return pixels.astype(np.float32) / (1 if mode == "1" else 255)
    if mode.startswith("I") and pixels.min() >= 0 and pixels.max() <= 65535:
        return pixels.astype(np.float32) / 65535
    raise DataError(f"{path} is an image of mode {mode}; expected a gray PNG of 8 or 16 bit. Convert it.")


def read_saliency(path_or_array: str | Path | np.ndarray, size: tuple[int, int]) -> Tensor:
    """A saliency map at an image's size.

    Args:
        path_or_array: gray PNG; or (h, w) array, integers in 0..255 or floats in [0, 1].
        size: (H, W) of the image; a map of another size is resized (bilinear).

    Returns:
        (H, W) float32 in [0, 1]; 1 is salient.

    Raises:
        DataError: if the file is missing, broken or not gray.
        ValueError: if the array has another shape or range.
    """
    if isinstance(path_or_array, np.ndarray):
        scores = path_or_array.astype(np.float32) / (255 if path_or_array.dtype.kind in "iu" else 1)
    else:
        scores = read_gray(path_or_array)
    # The comparison is false for NaN, too.
    if scores.ndim != 2 or scores.size == 0 or not (scores.min() >= 0 and scores.max() <= 1):
        raise ValueError(
            f"expected saliency (h, w) of integers in 0..255 or of floats in [0, 1], got shape {scores.shape}"
            + (f" with values from {scores.min()} to {scores.max()}" if scores.size else "")
        )
    tensor = torch.from_numpy(scores)
    if tensor.shape == tuple(size):
        return tensor
    return F.interpolate(tensor[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0]


def saliency_background(path_or_array: str | Path | np.ndarray, size: tuple[int, int]) -> Tensor:
    """One minus saliency as a background score: (H, W) float32 in [0, 1].

    With `argmax` over it and the maps, both decide on the background; with `functional.labels_with_saliency`,
    saliency alone. Arguments and errors as `read_saliency`.
    """
    return 1 - read_saliency(path_or_array, size)
