"""Learning rate search for RIB: rates do not transfer between networks, poolings or batch sizes."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ribseg.checks import check_number
from ribseg.errors import ConfigError
from ribseg.types import Adaptation

PER_DECADE = 2
BISECTIONS = 2  # of the last interval in the search by growth: to within a factor of 1.33


class TriedRate(NamedTuple):
    """Result of one learning rate.

    Attributes:
        lr: the rate.
        completed: fraction of images that took all steps, among those that did at the first rate.
        growth: of the logits, see `growth_of`.
    """

    lr: float
    completed: float
    growth: float


class RateSearch(NamedTuple):
    """The chosen rate and all trials."""

    lr: float
    trials: list[TriedRate]


Adapt = Callable[[float], Sequence[Adaptation]]


def find_rate(
    adapt: Adapt, low: float = 1e-6, high: float = 1.0, completed: float = 0.5, growth: float | None = None
) -> RateSearch:
    """Searches RIB's learning rate on a few images, without ground truth.

    With `growth`, finds the rate at which the target logits grow by this factor up to the last step; this
    criterion depends less on network and loss than the rate itself. Without, finds the largest rate at which
    enough images take all steps before RIB's stop rules (margin, area) end them; images that stop at the
    first rate, because the area of their CAM is too large, are excluded. Rates increase, two per decade,
    until one is too large.

    Args:
        adapt: learning rate -> adaptations of a few images.
        low: first rate.
        high: last rate.
        completed: fraction of images that must take all steps.
        growth: target growth of the logits, see `growth_of`; None uses `completed`.

    Returns:
        The rate, from `low` to `high`.

    Raises:
        ConfigError: the range is empty; every image stops at the first rate; or `growth` is exceeded at the
            first rate or not reached at the last.

    Source: not in the paper, whose rate is for ResNet-50.
    """
    check_search(low, high, completed, growth)
    if growth is None:
        return _largest_completed(adapt, low, high, completed)
    return _rate_of_growth(adapt, low, high, growth)


def growth_of(adaptations: Sequence[Adaptation]) -> float:
    """Growth factor of the classifier's target logits; 1 for no growth.

    It is 1 + (sum of increases from first to last step) / (sum of magnitudes at the first step) over the
    images: the ratio of the means if these are positive, but defined for negative ones, too. Infinite if an
    adaptation ended with non-finite numbers, NaN without measurements.
    """
    ends = [(item.history[0].logit, item.history[-1].logit) for item in adaptations if item.history]
    if not ends:
        return math.nan
    if any(item.stopped == "not_finite" for item in adaptations):
        return math.inf
    rise = sum(last - first for first, last in ends)
    magnitude = sum(abs(first) for first, _ in ends)
    return 1 + rise / magnitude if magnitude else math.nan


def check_search(
    low: float = 1e-6, high: float = 1.0, completed: float = 0.5, growth: float | None = None
) -> None:
    """Raises a ConfigError unless the arguments of `find_rate` are in range."""
    check_number("low", low, above=0)
    check_number("high", high, above=0)
    check_number("completed", completed, 0, 1)
    check_number("growth", growth, above=1, words=(None,))
    if low > high:
        raise ConfigError(f"expected 0 < low <= high for the learning rates, got {low} and {high}")


def _rates(low: float, high: float) -> list[float]:
    places = np.arange(int(np.log10(high / low) * PER_DECADE + 1e-9) + 1) / PER_DECADE
    return [float(f"{low * 10**place:.3g}") for place in places]


def _largest_completed(adapt: Adapt, low: float, high: float, completed: float) -> RateSearch:
    rates = _rates(low, high)
    first = adapt(rates[0])
    complete = [index for index, item in enumerate(first) if item.stopped is None]
    if not complete:
        raise ConfigError(
            f"the rate search failed: all images stop at the first rate, lr={low:g}: "
            f"{dict(Counter(item.stopped for item in first))}. If by area, that of the CAMs is too large: "
            "raise rib.area_limit, or train the classifier longer; if by margin, raise rib.margin or lower "
            "rate_search.low. Or set rib.lr to a number."
        )
    trials = [TriedRate(rates[0], 1.0, growth_of(first))]
    for lr in rates[1:]:
        trials.append(_trial(adapt, lr, complete))
        if trials[-1].completed < completed:
            return RateSearch(trials[-2].lr, trials)
    return RateSearch(trials[-1].lr, trials)


def _rate_of_growth(adapt: Adapt, low: float, high: float, growth: float) -> RateSearch:
    trials: list[TriedRate] = []
    for lr in _rates(low, high):
        trials.append(_trial(adapt, lr))
        if not trials[-1].growth < growth:
            break
    if math.isnan(trials[-1].growth):
        raise ConfigError(
            "the rate search by growth failed: the method records no logits (Adaptation.history). Set "
            "rate_search.growth=null, or set lr to a number"
        )
    if len(trials) == 1 or trials[-1].growth < growth:
        wrong, setting = ("below", "high") if trials[-1].growth < growth else ("above", "low")
        raise ConfigError(
            f"the rate search failed: at lr={trials[-1].lr:g} the logits grow by a factor of "
            f"{trials[-1].growth:.3g}, {wrong} rate_search.growth={growth:g}; change rate_search.{setting}, "
            "or set rib.lr to a number"
        )
    below, above = trials[-2], trials[-1]
    for _ in range(BISECTIONS):
        trials.append(_trial(adapt, float(f"{math.sqrt(below.lr * above.lr):.3g}")))
        below, above = (trials[-1], above) if trials[-1].growth < growth else (below, trials[-1])
    nearer = min(below, above, key=lambda trial: abs(math.log(max(trial.growth, 1e-9) / growth)))
    return RateSearch(nearer.lr, trials)


def _trial(adapt: Adapt, lr: float, images: Sequence[int] | None = None) -> TriedRate:
    """The result of a rate; `completed` counts only the images with these indices, None: all."""
    adaptations = adapt(lr)
    chosen = range(len(adaptations)) if images is None else images
    completed = sum(adaptations[index].stopped is None for index in chosen) / len(chosen)
    return TriedRate(lr, completed, growth_of(adaptations))
