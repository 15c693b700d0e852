"""How much of a region the gradient reaches: the high gradient ratio (RIB paper, section 3.2, figure 1)."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.checks import check_choice, check_number

Normalise = Literal["max", "percentile", "none"]
PERCENTILE = 0.99
"""Of each image's pixels; its value becomes one with normalise="percentile"."""
REACH = 4.0
"""Where the Gaussian is cut off, in standard deviations."""


def gradient_map(gradient: Tensor, sigma: float = 0.0) -> Tensor:
    """Absolute value, mean over the channels, smoothed.

    Args:
        gradient: (N, C, H, W) or (N, H, W).
        sigma: standard deviation of the Gaussian in pixels; 0 does not smooth. Borders are repeated.

    Returns:
        (N, H, W), at least zero.

    Raises:
        ValueError: a shape that is neither, or sigma is no number >= 0 (a ConfigError).
    """
    check_number("sigma", sigma, low=0)
    if gradient.ndim not in (3, 4):
        raise ValueError(f"expected a gradient (N, C, H, W) or (N, H, W), got {tuple(gradient.shape)}")
    size = gradient.detach().abs()
    size = size.mean(1) if size.ndim == 4 else size
    return size if sigma == 0 else _smoothed(size, sigma)


def _smoothed(maps: Tensor, sigma: float) -> Tensor:
    reach = max(round(REACH * sigma), 1)
    offsets = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]


def normalized_gradient(gradient: Tensor, normalise: Normalise = "max", sigma: float = 0.0) -> Tensor:
    """The gradient map on a scale of its own image.

    Args:
        gradient: (N, C, H, W) or (N, H, W).
        normalise: "max": divided by the image's maximum. "percentile": by its 99th percentile, which a few
            bright pixels do not move; values may exceed one. "none": as it is, thresholds are absolute.
        sigma: see `gradient_map`.

    Returns:
        (N, H, W), at least zero; an image without any gradient stays zero.

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
    else:  # in double precision, or older releases round the place between two values
        scale = torch.quantile(flat.double(), PERCENTILE, dim=1).to(flat.dtype)
    scale = scale[:, None, None]
    return torch.where(scale > 0, maps / scale, torch.zeros_like(maps))


def check_gradient(threshold: float = 0.3, normalise: str = "max", sigma: float = 0.0) -> None:
    """Raises a ConfigError unless the arguments of `high_gradient_ratio` that are no tensors are in range."""
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
    """HGR: the share of a region's pixels whose normalised gradient exceeds a threshold.

    What it says depends on the treatment, so quote it: without smoothing the decay over the layers is more
    gradual, because maps of deep layers are grainy; the 99th percentile weakens the last layer's collapse.

    Args:
        gradient: (N, C, H, W) or (N, H, W), e.g. of `input_gradients`.
        region: (N, H, W) bool.
        threshold: 0.3 in the paper.
        normalise: see `normalized_gradient`.
        sigma: of the smoothing, in pixels; see `gradient_map`.

    Returns:
        (N,) in [0, 1]; NaN where the region is empty or the gradient is not finite.

    Raises:
        ValueError: shapes do not fit, or an argument is out of range.

    >>> gradient = torch.tensor([[[4.0, -2.0], [1.0, 0.0]]])
    >>> high_gradient_ratio(gradient, torch.tensor([[[True, True], [True, False]]]))
    tensor([0.6667])
    """
    if region.shape != (gradient.shape[0], *gradient.shape[-2:]):
        raise ValueError(
            f"expected a region (N, H, W) to the gradient {tuple(gradient.shape)}, got {tuple(region.shape)}"
        )
    check_gradient(threshold, normalise, sigma)
    maps = normalized_gradient(gradient, normalise, sigma)
    inside = region.bool()
    ratio = ((maps > threshold) & inside).sum((-2, -1)) / inside.sum((-2, -1))  # 0/0 = nan: an empty region
    # nan > threshold is false: a broken gradient would look like none.
    return torch.where(gradient.flatten(1).isfinite().all(1), ratio, ratio.new_full((), float("nan")))
