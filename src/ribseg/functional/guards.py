"""Checks of the values that functions are given, where a wrong one would give a wrong result in silence."""

import torch
from torch import Tensor


def check_class_maps(maps: Tensor, classes: Tensor) -> None:
    """Raises a ValueError unless these are finite maps (K, H, W) of floats, of the classes (K,)."""
    if maps.ndim != 3 or classes.shape != maps.shape[:1]:
        raise ValueError(
            f"expected maps (K, H, W) of the classes (K,), got {tuple(maps.shape)} and {tuple(classes.shape)}"
        )
    check_finite_maps(maps)


def check_finite_maps(maps: Tensor) -> None:
    """Raises a ValueError unless the maps are floats without NaN and infinity."""
    if not maps.is_floating_point() or not torch.isfinite(maps).all():
        raise ValueError(f"expected finite float maps, got {maps.dtype} with NaN or infinity, or integers")


def check_ascending(thresholds: Tensor) -> None:
    """Raises a ValueError unless thresholds (T,) ascend, as a search among them takes for granted."""
    if thresholds.ndim != 1 or not bool((thresholds.diff() > 0).all()):
        raise ValueError(
            f"expected thresholds (T,) in ascending order, got {thresholds.flatten()[:5].tolist()}"
        )


def check_same_shape(first: Tensor, second: Tensor, names: str) -> None:
    """Raises a ValueError unless two tensors have one shape; broadcasting would pair other elements."""
    if first.shape != second.shape:
        raise ValueError(f"expected {names} of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")


def check_probabilities(values: Tensor) -> None:
    """Raises a ValueError unless (K, H, W) values are finite, not negative, and sum to 1 over K."""
    total = values.sum(0)
    low, high = float(values.min()), float(values.max())
    if not torch.isfinite(total).all() or low < 0 or ((total - 1).abs() > 0.01).any():
        raise ValueError(
            f"expected probabilities from 0 to 1 that sum to 1 over the labels, got {low:.3g} to {high:.3g}, "
            f"sums from {float(total.min()):.3g} to {float(total.max()):.3g}; apply softmax(0) to logits"
        )
