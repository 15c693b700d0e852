"""Learning rate search for RIB: rates do not transfer between networks, poolings or batch sizes."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from ribseg.checks import check_number
from ribseg.errors import ConfigError
from ribseg.types import Adaptation

PER_DECADE = 2
# Of the search by growth: the share of the images that is adapted until the rate is known roughly; the factor
# between two predictions at which it is; the most trials.
PART, ROUGH, TRIALS = 0.25, 1.25, 10


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


class Adapt(Protocol):
    """Adapts a few images, or a share of them, the first ones, at a learning rate."""

    def __call__(self, lr: float, share: float = 1.0) -> Sequence[Adaptation]: ...  # noqa: D102


def find_rate(
    adapt: Adapt, low: float = 1e-6, high: float = 1.0, completed: float = 0.5, growth: float | None = None
) -> RateSearch:
    """Searches RIB's learning rate on a few images, without ground truth.

    With `growth`, finds the rate at which the target logits grow by this factor up to the last step; this
    criterion depends less on network and loss than the rate itself. Without, finds the largest rate at which
    enough images take all steps before RIB's stop rules (margin, area) end them; images that stop at the
    first rate, because the area of their CAM is too large, are excluded. Rates increase, two per decade,
    until one is too large. By growth, each trial predicts the next rate instead.

    Args:
        adapt: learning rate -> adaptations of a few images; of a share of them, the first ones, with `share`.
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
    """Follows the growth, which is nearly a power of the rate: each trial predicts the next one.

    On a part of the images until the prediction stands to within `ROUGH`, then on all of them.
    """
    trials, alike = list[TriedRate](), list[TriedRate]()  # all, and those on the same images
    lr, share, power = low, PART, 1.0
    while len(trials) < TRIALS:
        trials.append(_trial(partial(adapt, share=share), lr))
        alike.append(trials[-1])
        _check_growth(trials[-1], low, high, growth)
        power = _power(alike, power)
        predicted = _predicted(alike, power, low, high, growth)
        near = max(predicted / lr, lr / predicted) < ROUGH
        if near and share == 1.0:
            return RateSearch(predicted, trials)
        if near:
            share, alike = 1.0, []
        lr = predicted
    return RateSearch(lr, trials)


def _check_growth(trial: TriedRate, low: float, high: float, growth: float) -> None:
    """Raises a ConfigError if nothing is measured, or the growth lies outside of the range of rates."""
    if math.isnan(trial.growth):
        raise ConfigError(
            "the rate search by growth failed: the method records no logits (Adaptation.history). Set "
            "rate_search.growth=null, or set lr to a number"
        )
    less = trial.growth < growth
    if trial.lr == (high if less else low):
        wrong, setting = ("below", "high") if less else ("above", "low")
        raise ConfigError(
            f"the rate search failed: at lr={trial.lr:g} the logits grow by a factor of {trial.growth:.3g}, "
            f"{wrong} rate_search.growth={growth:g}; change rate_search.{setting}, or set rib.lr to a number"
        )


def _power(trials: Sequence[TriedRate], known: float) -> float:
    """The power of the rate by which the growth minus one rises, by the last two trials if they tell."""
    if len(trials) < 2:
        return known
    (before, last), rises = trials[-2:], [trial.growth - 1 for trial in trials[-2:]]
    if before.lr == last.lr or not all(0 < rise < math.inf for rise in rises):
        return known
    return min(max(math.log(rises[1] / rises[0]) / math.log(last.lr / before.lr), 0.5), 2.0)


def _predicted(trials: Sequence[TriedRate], power: float, low: float, high: float, growth: float) -> float:
    """The rate at which the logits should grow so far; between those that were too weak and too strong."""
    last = trials[-1]
    below = max([trial.lr for trial in trials if trial.growth < growth], default=low)
    above = min([trial.lr for trial in trials if trial.growth >= growth], default=high)
    if not 1 < last.growth < math.inf:
        return _rounded(min(10 * last.lr, above) if last.growth <= 1 else math.sqrt(below * above))
    predicted = last.lr * ((growth - 1) / (last.growth - 1)) ** (1 / power)
    return _rounded(min(max(predicted, below), above, 100 * last.lr))


def _rounded(lr: float) -> float:
    return float(f"{lr:.3g}")


def _trial(adapt: Adapt, lr: float, images: Sequence[int] | None = None) -> TriedRate:
    """The result of a rate; `completed` counts only the images with these indices, None: all."""
    adaptations = adapt(lr)
    chosen = range(len(adaptations)) if images is None else images
    completed = sum(adaptations[index].stopped is None for index in chosen) / len(chosen)
    return TriedRate(lr, completed, growth_of(adaptations))
