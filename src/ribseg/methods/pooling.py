"""Poolings as callables, for `ribseg.RIB` and for configurations."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

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
    """A pooling that is tried when it is built: its function knows the ranges of its settings.

    No dataclass, because Hydra makes a configuration of a dataclass object that is given to `instantiate`.

    Args:
        settings: become attributes; two poolings with equal settings are equal.
    """

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)
        self(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"the settings of {type(self).__name__} are checked once; build another one")

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
        )

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    @abstractmethod
    def __call__(self, maps: Tensor, labels: Tensor) -> Tensor:
        """(N, C, h, w) class maps and (N, C) labels in {0, 1} -> (N, C) logits."""


class GAP(_Pooling):
    """Global average pooling; ignores the labels.

    >>> GAP()(torch.ones(2, 3, 4, 4), torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return gap(maps)


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

    threshold: float
    divisor: Divisor
    rule: Rule
    num_masked_classes: int | None

    def __init__(
        self,
        threshold: float = 0.4,
        divisor: Divisor = "all",
        rule: Rule = "official",
        num_masked_classes: int | None = None,
    ) -> None:
        super().__init__(
            threshold=threshold, divisor=divisor, rule=rule, num_masked_classes=num_masked_classes
        )

    def __call__(self, maps: Tensor, labels: Tensor) -> Tensor:
        """(N, C, h, w) class maps and (N, C) labels in {0, 1} -> (N, C) logits."""
        return gndrp(maps, labels, self.threshold, self.divisor, self.rule, self.num_masked_classes)


class GlobalMax(_Pooling):
    """Global max pooling; see `ribseg.functional.global_max`."""

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return global_max(maps)


class LogSumExp(_Pooling):
    """Log-sum-exp pooling; see `ribseg.functional.log_sum_exp`.

    Args:
        sharpness: r > 0.

    Raises:
        ConfigError: it is out of range.
    """

    sharpness: float

    def __init__(self, sharpness: float = 5.0) -> None:
        super().__init__(sharpness=sharpness)

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return log_sum_exp(maps, self.sharpness)


class TopK(_Pooling):
    """The mean of the highest values; see `ribseg.functional.top_k`.

    Args:
        share: of the locations, in (0, 1].

    Raises:
        ConfigError: it is out of range.
    """

    share: float

    def __init__(self, share: float = 0.2) -> None:
        super().__init__(share=share)

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return top_k(maps, self.share)


class GeneralizedMean(_Pooling):
    """Generalized-mean pooling; see `ribseg.functional.generalized_mean`.

    Args:
        power: p > 0.

    Raises:
        ConfigError: it is out of range.
    """

    power: float

    def __init__(self, power: float = 3.0) -> None:
        super().__init__(power=power)

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
