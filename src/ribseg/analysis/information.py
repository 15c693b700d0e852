"""An estimate of mutual information by binning."""

from typing import NamedTuple

import torch
from torch import Tensor


class Information(NamedTuple):
    """In bits: about the input, `I(X;T)`, and about the label, `I(T;Y)`."""

    input: float
    label: float


def binned_information(activations: Tensor, labels: Tensor, bins: int = 30) -> Information:
    """`I(X;T)` and `I(T;Y)` of a layer T, its activations sorted into bins (Shwartz-Ziv and Tishby, 2017).

    A caveat that must travel with every number: this measures the binning as much as the network. A layer
    is a function of the input, so `I(X;T)` is infinite for continuous T, and with bins it is the entropy of
    the binned T: it grows with their number, and cannot exceed log2(N). Wide layers reach that at once,
    because no two images share all bins; look at a few numbers per image (logits, pooled features) and
    compare only equal widths, bins and N. Saxe et al. (2018) show that the compression seen this way follows
    from saturation of the activation, and is absent with ReLU.

    Args:
        activations: (N, ...) of N different images; each number's range over the images is cut into equal
            bins, so that a layer's scale plays no part.
        labels: (N,) integer classes.
        bins: per number.

    Returns:
        Both in bits, from 0 to log2(N).

    Raises:
        ValueError: shapes do not fit, values that are not finite, or bins < 1.

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
    """Of the patterns' frequencies, in bits."""
    shares = patterns.unique(return_counts=True)[1].double() / len(patterns)
    return abs(float(-(shares * shares.log2()).sum()))
