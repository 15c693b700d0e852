"""Class-agnostic segments of an image: superpixels, or the files of another program."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ribseg.checks import check_choice, check_number
from ribseg.errors import ConfigError
from ribseg.functional.segments import check_share

SUPERPIXELS = ("slic", "felzenszwalb")
ENDINGS = {"png": ".png", "coco": ".json"}  # source -> ending of its files
SOURCES = (*SUPERPIXELS, *ENDINGS)


def slic(image: np.ndarray, n_segments: int = 100, compactness: float = 20.0) -> Tensor:
    """The superpixels of SLIC (Achanta et al., PAMI 2012), by scikit-image: compact, of similar size.

    Args:
        image: (H, W, 3) uint8 RGB.
        n_segments: about how many superpixels an image has.
        compactness: weight of the distance in place; lower values follow colours more.

    Returns:
        (H, W) int64, numbers from 1.

    Raises:
        ConfigError: an argument is out of range, or scikit-image is not installed.
    """
    check_slic(n_segments, compactness)
    check_installed()
    from skimage.segmentation import slic as superpixels

    return torch.from_numpy(superpixels(image, n_segments, compactness, start_label=1).astype(np.int64))


def felzenszwalb(image: np.ndarray, scale: float = 200.0, sigma: float = 0.8, min_size: int = 50) -> Tensor:
    """The superpixels of Felzenszwalb and Huttenlocher (IJCV 2004), by scikit-image: they differ in size.

    Args:
        image: (H, W, 3) uint8 RGB.
        scale: higher values give larger superpixels.
        sigma: standard deviation of the Gaussian that smooths the image first, in pixels.
        min_size: smallest superpixel, in pixels.

    Returns:
        (H, W) int64, numbers from 1.

    Raises:
        ConfigError: an argument is out of range, or scikit-image is not installed.
    """
    check_felzenszwalb(scale, sigma, min_size)
    check_installed()
    from skimage.segmentation import felzenszwalb as superpixels

    return torch.from_numpy(superpixels(image, scale, sigma, min_size).astype(np.int64) + 1)


def check_slic(n_segments: int = 100, compactness: float = 20.0) -> None:
    """Raises a ConfigError unless the settings of `slic` are in range."""
    check_number("n_segments", n_segments, low=1, whole=True)
    check_number("compactness", compactness, above=0)


def check_felzenszwalb(scale: float = 200.0, sigma: float = 0.8, min_size: int = 50) -> None:
    """Raises a ConfigError unless the settings of `felzenszwalb` are in range."""
    check_number("scale", scale, above=0)
    check_number("sigma", sigma, low=0)
    check_number("min_size", min_size, low=1, whole=True)


def check_segments(
    source: str = "felzenszwalb",
    folder: str | Path | None = None,
    share: float = 0.5,
    slic: Mapping[str, Any] | None = None,
    felzenszwalb: Mapping[str, Any] | None = None,
) -> None:
    """Raises a ConfigError unless source and share of the segments are in range.

    Args:
        source: one of `SOURCES`.
        folder: of the files; None without any.
        share: see `ribseg.functional.vote_segments`.
        slic: arguments of `slic`, checked by `check_slic`.
        felzenszwalb: arguments of `felzenszwalb`, checked by `check_felzenszwalb`.
    """
    check_choice("source", source, SOURCES)
    check_share(share)


def check_installed() -> None:
    """Raises a ConfigError unless scikit-image, which makes the superpixels, is installed."""
    if find_spec("skimage") is None:
        raise ConfigError(
            "superpixels need scikit-image, which is not installed: pip install 'ribseg[superpixels]'; or "
            "take the segments of another program, source=png or coco"
        )
