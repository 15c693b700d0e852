"""Search of RIB's learning rate: it does not carry over between networks, poolings or batch sizes."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from ribseg.checks import check_number
from ribseg.errors import ConfigError
from ribseg.types import Adaptation

PER_DECADE = 2
BISECTIONS = 2  # of the last interval, in the search for a growth: to within a factor of 1.33


class Trial(NamedTuple):
    """What one rate did to the images.

    Attributes:
        lr: the rate.
        completed: share of images that took all their steps, of those that did at the first rate.
        growth: of the logits, see `growth_of`.
    """

    lr: float
    completed: float
    growth: float


class RateSearch(NamedTuple):
    """The chosen rate and what was tried."""

    lr: float
    trials: list[Trial]


Adapt = Callable[[float], Sequence[Adaptation]]


def find_rate(
    adapt: Adapt,
    low: float = 1e-6,
    high: float = 1.0,
    completed: float = 0.5,
    growth: float | None = None,
) -> RateSearch:
    """The learning rate that drives a few images as far as is asked, without any ground truth.

    With `growth`, the rate at which the target classes' logits grow by that factor until the last step: what
    a rate does depends on the network and on the loss, how far the logits come less so. Without, the largest
    rate at which enough images still take all their steps: RIB's own stop rules (margin, area) say when an
    image has been driven too far. Images that they stop at the first rate already, because their plain CAM is
    as wide, do not count. Rates are tried upwards, two per decade, until one is too large.

    Args:
        adapt: learning rate -> adaptations of a few images.
        low: first rate.
        high: last rate.
        completed: the share of images that must take all steps.
        growth: factor by which the logits shall grow, see `growth_of`; None goes by `completed`.

    Returns:
        The rate, from `low` to `high`.

    Raises:
        ConfigError: the range is empty; the first rate stops every image; or it lets the logits grow beyond
            `growth`, or the last rate not as far.

    Source: none in the paper, whose rate belongs to ResNet-50.
    """
    check_search(low, high, completed, growth)
    if growth is None:
        return _largest_completed(adapt, low, high, completed)
    return _rate_of_growth(adapt, low, high, growth)


def growth_of(adaptations: Sequence[Adaptation]) -> float:
    """How the classifier's logits of the target classes have grown, as a factor: 1 if they have not.

    The rise from the first step to the last over the magnitude at the first, both summed over the images,
    plus one. So it is the factor between the means where these are positive, and defined where they are not.
    Infinite where an adaptation ended in numbers that are not finite, NaN where nothing was measured.
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
    telling = [index for index, item in enumerate(first) if item.stopped is None]
    if not telling:
        raise ConfigError(
            f"no rate can be found: already lr={low:g} stops all images: "
            f"{dict(Counter(item.stopped for item in first))}. If by area, the plain CAMs are as wide: raise "
            "rib.area_limit, or train the classifier longer; if by margin, raise rib.margin or lower "
            "rate_search.low. Or give rib.lr a number."
        )
    trials = [Trial(rates[0], 1.0, growth_of(first))]
    for lr in rates[1:]:
        trials.append(_trial(adapt, lr, telling))
        if trials[-1].completed < completed:
            return RateSearch(trials[-2].lr, trials)
    return RateSearch(trials[-1].lr, trials)


def _rate_of_growth(adapt: Adapt, low: float, high: float, growth: float) -> RateSearch:
    trials: list[Trial] = []
    attempt = partial(_trial, adapt)
    for lr in _rates(low, high):
        trials.append(attempt(lr))
        if not trials[-1].growth < growth:
            break
    if math.isnan(trials[-1].growth):
        raise ConfigError(
            "no rate can be found by rate_search.growth: the method measures no logits (Adaptation.history). "
            "Set rate_search.growth=null, or give lr a number"
        )
    if len(trials) == 1 or trials[-1].growth < growth:
        wrong, setting = ("below", "high") if trials[-1].growth < growth else ("above", "low")
        raise ConfigError(
            f"no rate can be found: at lr={trials[-1].lr:g} the logits have grown "
            f"{trials[-1].growth:.3g}-fold, {wrong} rate_search.growth={growth:g}; change "
            f"rate_search.{setting}, or give rib.lr a number"
        )
    below, above = trials[-2], trials[-1]
    for _ in range(BISECTIONS):
        trials.append(attempt(float(f"{math.sqrt(below.lr * above.lr):.3g}")))
        below, above = (trials[-1], above) if trials[-1].growth < growth else (below, trials[-1])
    return RateSearch(min(below, above, key=lambda trial: _distance(trial.growth, growth)).lr, trials)


def _distance(growth: float, wanted: float) -> float:
    return abs(math.log(max(growth, 1e-9) / wanted))


def _trial(adapt: Adapt, lr: float, telling: Sequence[int] | None = None) -> Trial:
    """A rate on those images that tell something; None: on all."""
    found = adapt(lr)
    chosen = range(len(found)) if telling is None else telling
    completed = sum(found[index].stopped is None for index in chosen) / len(chosen)
    return Trial(lr, completed, growth_of(found))
