"""Stop rules over numbers that a device computes, read without letting the device run dry."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ribseg.types import Stop

Rule = Callable[[list[float]], Stop | None]


class Check(NamedTuple):
    """Numbers, and what follows from them.

    Attributes:
        step: the step that is being taken.
        values: (n,) tensor.
        rule: gets them as floats; says whether the adaptation ends, and why.
    """

    step: int
    values: Tensor
    rule: Rule


def first_stop(checks: Iterator[Check | None], deferred: bool) -> tuple[int, Stop] | None:
    """Runs an iterator of checks to its end, or to the first that stops it.

    Args:
        checks: yields a check where its numbers are computed, and None where work has been queued behind
            them. Whatever the iterator does on the way is the work.
        deferred: False applies each rule at once, before more is computed: right for a CPU. True applies
            the rules, in their order, only at the next None: a device is then busy while the numbers travel,
            instead of idle. What it has computed in vain by then is dropped.

    Returns:
        Step and reason, or None if nothing stopped it.
    """
    waiting: list[tuple[Check, _Reading]] = []
    for check in checks:
        if check is not None:
            waiting.append((check, _Reading(check.values)))
        if check is None or not deferred:
            stop = _apply(waiting)
            if stop is not None:
                return stop
            waiting.clear()
    return _apply(waiting)


def _apply(waiting: list[tuple[Check, "_Reading"]]) -> tuple[int, Stop] | None:
    for check, reading in waiting:
        stop = check.rule(reading.values())
        if stop is not None:
            return check.step, stop
    return None


class _Reading:
    """A copy of numbers to the host that waits for them alone, not for what is queued behind them."""

    def __init__(self, values: Tensor) -> None:
        self._event = None
        self._values = values.detach()
        if values.is_cuda:
            # Only a copy to pinned memory leaves the host free.
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))

    def values(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return [float(value) for value in self._values.tolist()]
