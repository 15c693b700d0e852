"""Mutual information, estimated by binning."""

from typing import NamedTuple

import torch
from torch import Tensor


class Information(NamedTuple):
    """Mutual information in bits with the input, `I(X;T)`, and with the label, `I(T;Y)`."""

    input: float
    label: float


def binned_information(activations: Tensor, labels: Tensor, bins: int = 30) -> Information:
    """Estimates `I(X;T)` and `I(T;Y)` of a layer T by binning (Shwartz-Ziv and Tishby, 2017).

    Report the binning with every value, which depends on it as much as on the network. A layer is a function
    of the input, so `I(X;T)` is infinite for continuous T and with bins the entropy of the binned T, which
    grows with the number of bins up to log2(N). Wide layers always reach log2(N), as no two images share all
    bins: use few numbers per image (logits, pooled features) and compare only equal widths, bins and N. Saxe
    et al. (2018) show that compression in this estimate is due to saturating activations, absent with ReLU.

    Args:
        activations: (N, ...) of N different images; the range of each number over the images is divided into
            equal bins, so the result does not depend on the scale.
        labels: (N,) integer classes.
        bins: number of bins.

    Returns:
        Both in bits, from 0 to log2(N).

    Raises:
        ValueError: shapes do not match, values are not finite, or bins < 1.

    >>> binned_information(torch.tensor([[0.0], [0.1], [1.0], [0.9]]), torch.tensor([0, 0, 1, 1]), bins=2)
    Information(input=1.0, label=1.0)
    """
    values = activations.detach().flatten(1).double()
    if labels.shape != values.shape[:1] or len(values) == 0 or bins < 1:
        raise ValueError(
            "expected activations (N, ...) and labels (N,), N >= 1, bins >= 1, got "
            f"{tuple(activations.shape)}, {tuple(labels.shape)}, {bins}"
        )
    if not values.isfinite().all():
        raise ValueError("expected finite activations")
    low, high = values.amin(0), values.amax(0)
    width = torch.where(high > low, high - low, torch.ones_like(high))
    cells = ((values - low) / width * bins).long().clamp(max=bins - 1)
    patterns = cells.unique(dim=0, return_inverse=True)[1]
    whole = _entropy(patterns)
    given_label = sum(
        float((labels == label).double().mean()) * _entropy(patterns[labels == label])
        for label in labels.unique()
    )
    return Information(whole, max(whole - given_label, 0.0))


def _entropy(patterns: Tensor) -> float:
    """Entropy of the frequencies of patterns, in bits."""
    shares = patterns.unique(return_counts=True)[1].double() / len(patterns)
    return abs(float(-(shares * shares.log2()).sum()))
