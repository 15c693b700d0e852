"""Search of RIB's learning rate: it does not carry over between networks, poolings or batch sizes."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ribseg.checks import check_number
from ribseg.errors import ConfigError
from ribseg.types import Adaptation

PER_DECADE = 2


class Trial(NamedTuple):
    """What one rate did to the images.

    Attributes:
        lr: the rate.
        completed: share of images that took all their steps, of those that did at the first rate.
    """

    lr: float
    completed: float


class RateSearch(NamedTuple):
    """The chosen rate and what was tried."""

    lr: float
    trials: list[Trial]


def find_rate(
    adapt: Callable[[float], Sequence[Adaptation]],
    low: float = 1e-6,
    high: float = 1.0,
    completed: float = 0.5,
) -> RateSearch:
    """The largest rate at which at least half of the images still take all steps, without any ground truth.

    RIB's own stop rules (margin, area) say when an image has been driven too far; so the strongest rate that
    they let enough images complete is taken. Rates are tried upwards, two per decade, until one fails.
    Images that are stopped at the first rate already, because their plain CAM is as wide, do not count.

    Args:
        adapt: learning rate -> adaptations of a few images.
        low: first rate.
        high: last rate.
        completed: the share of images that must take all steps.

    Returns:
        The rate, at least `low`.

    Raises:
        ConfigError: the range is empty, or the first rate stops every image.
    """
    check_search(low, high, completed)
    decades = np.log10(high / low)
    rates = low * 10 ** (np.arange(int(decades * PER_DECADE + 1e-9) + 1) / PER_DECADE)
    first = [adaptation.stopped for adaptation in adapt(float(rates[0]))]
    telling = [index for index, stopped in enumerate(first) if stopped is None]
    if not telling:
        raise ConfigError(
            f"no rate can be found: already lr={low:g} stops all images: {dict(Counter(first))}. If by area, "
            "the plain CAMs are as wide: raise rib.area_limit, or train the classifier longer; if by margin, "
            "raise rib.margin or lower rate_search.low. Or give rib.lr a number."
        )
    trials = [Trial(float(rates[0]), 1.0)]
    for rate in rates[1:]:
        lr = float(f"{rate:.3g}")
        stopped = [adaptation.stopped for adaptation in adapt(lr)]
        trials.append(Trial(lr, sum(stopped[index] is None for index in telling) / len(telling)))
        if trials[-1].completed < completed:
            return RateSearch(trials[-2].lr, trials)
    return RateSearch(trials[-1].lr, trials)


def check_search(low: float = 1e-6, high: float = 1.0, completed: float = 0.5) -> None:
    """Raises a ConfigError unless the arguments of `find_rate` are in range."""
    check_number("low", low, above=0)
    check_number("high", high, above=0)
    check_number("completed", completed, 0, 1)
    if low > high:
        raise ConfigError(f"expected 0 < low <= high for the learning rates, got {low} and {high}")
