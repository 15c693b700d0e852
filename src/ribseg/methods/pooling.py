"""Poolings as callables, for `ribseg.RIB` and for configurations."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ribseg.functional.activations import last_activation
from ribseg.functional.pooling import (
    Divisor,
    Rule,
    gap,
    generalized_mean,
    global_max,
    gndrp,
    log_sum_exp,
    top_k,
)


class _Pooling(ABC):
    """A pooling that is tried when it is built: its function knows the ranges of its settings."""

    def __post_init__(self) -> None:
        self(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1))

    @abstractmethod
    def __call__(self, maps: Tensor, labels: Tensor) -> Tensor:
        """(N, C, h, w) class maps and (N, C) labels in {0, 1} -> (N, C) logits."""


@dataclass(frozen=True)
class GAP(_Pooling):
    """Global average pooling; ignores the labels.

    >>> GAP()(torch.ones(2, 3, 4, 4), torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return gap(maps)


@dataclass(frozen=True)
class GNDRP(_Pooling):
    """Global non-discriminative region pooling (RIB paper, section 4.2, equation 7).

    Args:
        threshold: tau in [0, 1]; 0.4 on VOC, 0.5 on COCO.
        divisor: "all" (released program) or "kept" (equation).
        rule: "official" or "paper", see `ribseg.functional.gndrp`.
        num_masked_classes: None, or 20 for the released program's behaviour on COCO.

    Raises:
        ConfigError: an argument is out of range.

    >>> GNDRP(0.4)
    GNDRP(threshold=0.4, divisor='all', rule='official', num_masked_classes=None)
    """

    threshold: float = 0.4
    divisor: Divisor = "all"
    rule: Rule = "official"
    num_masked_classes: int | None = None

    def __call__(self, maps: Tensor, labels: Tensor) -> Tensor:
        """(N, C, h, w) class maps and (N, C) labels in {0, 1} -> (N, C) logits."""
        return gndrp(maps, labels, self.threshold, self.divisor, self.rule, self.num_masked_classes)


@dataclass(frozen=True)
class GlobalMax(_Pooling):
    """Global max pooling; see `ribseg.functional.global_max`."""

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return global_max(maps)


@dataclass(frozen=True)
class LogSumExp(_Pooling):
    """Log-sum-exp pooling; see `ribseg.functional.log_sum_exp`.

    Args:
        sharpness: r > 0.

    Raises:
        ConfigError: it is out of range.
    """

    sharpness: float = 5.0

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return log_sum_exp(maps, self.sharpness)


@dataclass(frozen=True)
class TopK(_Pooling):
    """The mean of the highest values; see `ribseg.functional.top_k`.

    Args:
        share: of the locations, in (0, 1].

    Raises:
        ConfigError: it is out of range.
    """

    share: float = 0.2

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return top_k(maps, self.share)


@dataclass(frozen=True)
class GeneralizedMean(_Pooling):
    """Generalized-mean pooling; see `ribseg.functional.generalized_mean`.

    Args:
        power: p > 0.

    Raises:
        ConfigError: it is out of range.
    """

    power: float = 3.0

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return generalized_mean(maps, self.power)


class Activated:
    """A pooling followed by a last activation, for comparison with RIB, which removes it.

    Args:
        pooling: maps (N, C, h, w), labels (N, C) -> (N, C).
        activation: name, see `ribseg.functional.activations`; "none" changes nothing.

    Raises:
        ConfigError: there is no such activation.

    >>> Activated(GAP(), "sigmoid")(torch.zeros(1, 2, 4, 4), torch.ones(1, 2))
    tensor([[0.5000, 0.5000]])
    """

    def __init__(self, pooling: Callable[[Tensor, Tensor], Tensor], activation: str) -> None:
        self.pooling, self.name, self.activation = pooling, activation, last_activation(activation)

    def __repr__(self) -> str:
        return f"Activated({self.pooling!r}, {self.name!r})"

    def __call__(self, maps: Tensor, labels: Tensor) -> Tensor:
        """(N, C, h, w) class maps and (N, C) labels in {0, 1} -> (N, C)."""
        return self.activation(self.pooling(maps, labels))


# Poolings of a class that do not look at the others; one that somebody brings may.
PER_CLASS = (GAP, GNDRP, GlobalMax, LogSumExp, TopK, GeneralizedMean)
