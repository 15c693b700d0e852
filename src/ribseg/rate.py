"""Search of RIB's learning rate: it does not carry over between networks, poolings or batch sizes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ribseg.types import Adaptation

PER_DECADE = 2


class Trial(NamedTuple):
    """What one rate did to the images.

    Attributes:
        lr: the rate.
        completed: share of images whose adaptation took all its steps.
        not_finite: share of images whose adaptation broke off because a value was not finite.
    """

    lr: float
    completed: float
    not_finite: float


class RateSearch(NamedTuple):
    """The chosen rate and what was tried."""

    lr: float
    trials: list[Trial]


def find_rate(
    adapt: Callable[[float], Sequence[Adaptation]],
    low: float = 1e-6,
    high: float = 1.0,
    completed: float = 0.75,
) -> RateSearch:
    """The largest rate at which most images still take all steps, without any ground truth.

    RIB's own stop rules (margin, area) say when an image has been driven too far; so the strongest rate that
    they let most images complete is taken. Rates are tried upwards, two per decade, until one fails.

    Args:
        adapt: learning rate -> adaptations of a few images.
        low: first rate.
        high: last rate.
        completed: the share of images that must take all steps.

    Returns:
        The rate, at least `low`.

    Raises:
        ValueError: the range is empty, or already `low` drives too many images too far.
    """
    if not 0 < low <= high:
        raise ValueError(f"expected 0 < low <= high, got {low} and {high}")
    decades = np.log10(high / low)
    rates = low * 10 ** (np.arange(int(decades * PER_DECADE + 1e-9) + 1) / PER_DECADE)
    trials: list[Trial] = []
    for lr in rates:
        trials.append(_trial(float(f"{lr:.3g}"), adapt))
        if trials[-1].completed < completed:
            break
    good = [trial.lr for trial in trials if trial.completed >= completed]
    if not good:
        raise ValueError(
            f"already lr={low} stops {1 - trials[0].completed:.0%} of the images before all steps are taken; "
            "start lower (rate_search.low), or raise rib.margin or rib.area_limit"
        )
    return RateSearch(good[-1], trials)


def _trial(lr: float, adapt: Callable[[float], Sequence[Adaptation]]) -> Trial:
    stopped = [adaptation.stopped for adaptation in adapt(lr)]
    share = 1 / len(stopped)
    return Trial(lr, stopped.count(None) * share, stopped.count("not_finite") * share)
