"""Gradient maps and the high gradient ratio of regions (RIB paper, section 3.2, figure 1)."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.checks import check_choice, check_number

Normalise = Literal["max", "percentile", "none"]
PERCENTILE = 0.99
"""Quantile of each image's pixels for normalise="percentile"."""
REACH = 4.0
"""Truncation of the Gaussian, in standard deviations."""


def gradient_map(gradient: Tensor, sigma: float = 0.0) -> Tensor:
    """Absolute values of a gradient, averaged over the channels and smoothed.

    Args:
        gradient: (N, C, H, W) or (N, H, W).
        sigma: standard deviation of the Gaussian in pixels; 0 disables smoothing. Borders are replicated.

    Returns:
        (N, H, W), non-negative.

    Raises:
        ValueError: another shape, or sigma is not a number >= 0 (a ConfigError).
    """
    check_number("sigma", sigma, low=0)
    if gradient.ndim not in (3, 4):
        raise ValueError(f"expected a gradient (N, C, H, W) or (N, H, W), got {tuple(gradient.shape)}")
    magnitude = gradient.detach().abs()
    magnitude = magnitude.mean(1) if magnitude.ndim == 4 else magnitude
    return magnitude if sigma == 0 else _smoothed(magnitude, sigma)


def _smoothed(maps: Tensor, sigma: float) -> Tensor:
    reach = max(round(REACH * sigma), 1)
    offsets = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]


def normalized_gradient(gradient: Tensor, normalise: Normalise = "max", sigma: float = 0.0) -> Tensor:
    """The gradient map, normalised per image.

    Args:
        gradient: (N, C, H, W) or (N, H, W).
        normalise: "max": divided by the image's maximum. "percentile": by its 99th percentile, which is
            robust to a few bright pixels; values may exceed one. "none": not normalised.
        sigma: see `gradient_map`.

    Returns:
        (N, H, W), non-negative; a zero gradient stays zero.

    Raises:
        ValueError: an argument is out of range.
    """
    check_gradient(normalise=normalise, sigma=sigma)
    maps = gradient_map(gradient, sigma)
    if normalise == "none":
        return maps
    flat = maps.flatten(1)
    if normalise == "max":
        scale = flat.amax(1)
    else:  # in double precision: older releases of torch interpolate inexactly
        scale = torch.quantile(flat.double(), PERCENTILE, dim=1).to(flat.dtype)
    scale = scale[:, None, None]
    return torch.where(scale > 0, maps / scale, torch.zeros_like(maps))


def check_gradient(threshold: float = 0.3, normalise: str = "max", sigma: float = 0.0) -> None:
    """Raises a ConfigError unless the settings of `high_gradient_ratio` are in range."""
    check_number("threshold", threshold, low=0)
    check_choice("normalise", normalise, get_args(Normalise))
    check_number("sigma", sigma, low=0)


def high_gradient_ratio(
    gradient: Tensor,
    region: Tensor,
    threshold: float = 0.3,
    normalise: Normalise = "max",
    sigma: float = 0.0,
) -> Tensor:
    """HGR: the fraction of a region's pixels whose normalised gradient exceeds a threshold.

    Report smoothing and normalization with it: without smoothing the decay over the layers is more gradual,
    because maps of deep layers are noisy; with the 99th percentile the drop at the last layer is smaller.

    Args:
        gradient: (N, C, H, W) or (N, H, W), e.g. of `input_gradients`.
        region: (N, H, W) bool.
        threshold: 0.3 in the paper.
        normalise: see `normalized_gradient`.
        sigma: of the smoothing, in pixels; see `gradient_map`.

    Returns:
        (N,) in [0, 1]; NaN if the region is empty or the gradient is not finite.

    Raises:
        ValueError: shapes do not match, or an argument is out of range.

    >>> gradient = torch.tensor([[[4.0, -2.0], [1.0, 0.0]]])
    >>> high_gradient_ratio(gradient, torch.tensor([[[True, True], [True, False]]]))
    tensor([0.6667])
    """
    if region.shape != (gradient.shape[0], *gradient.shape[-2:]):
        raise ValueError(
            f"expected a region (N, H, W) for the gradient {tuple(gradient.shape)}, got {tuple(region.shape)}"
        )
    check_gradient(threshold, normalise, sigma)
    maps = normalized_gradient(gradient, normalise, sigma)
    inside = region.bool()
    ratio = ((maps > threshold) & inside).sum((-2, -1)) / inside.sum((-2, -1))  # 0/0 = nan: an empty region
    # nan > threshold is false, so without this a broken gradient would count as zero.
    return torch.where(gradient.flatten(1).isfinite().all(1), ratio, ratio.new_full((), float("nan")))
