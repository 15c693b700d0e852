"""Poolings as callables, for `ribseg.RIB` and for configurations."""

from collections.abc import Callable

from torch import Tensor

from ribseg.checks import check_number
from ribseg.functional.activations import last_activation
from ribseg.functional.pooling import (
    Divisor,
    Rule,
    check_gndrp_arguments,
    gap,
    generalized_mean,
    global_max,
    gndrp,
    log_sum_exp,
    top_k,
)


class Described:
    """Prints itself as the call that makes it."""

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class GAP(Described):
    """Global average pooling; ignores the labels.

    >>> import torch
    >>> GAP()(torch.ones(2, 3, 4, 4), torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return gap(maps)


class GNDRP(Described):
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

    def __init__(
        self,
        threshold: float = 0.4,
        divisor: Divisor = "all",
        rule: Rule = "official",
        num_masked_classes: int | None = None,
    ) -> None:
        check_gndrp_arguments(threshold, divisor, rule, num_masked_classes)
        self.threshold, self.divisor, self.rule = threshold, divisor, rule
        self.num_masked_classes = num_masked_classes

    def __call__(self, maps: Tensor, labels: Tensor) -> Tensor:
        """(N, C, h, w) class maps and (N, C) labels in {0, 1} -> (N, C) logits."""
        return gndrp(maps, labels, self.threshold, self.divisor, self.rule, self.num_masked_classes)


class Activated:
    """A pooling followed by a last activation, for comparison with RIB, which removes it.

    Args:
        pooling: maps (N, C, h, w), labels (N, C) -> (N, C).
        activation: name, see `ribseg.functional.activations`; "none" changes nothing.

    >>> import torch
    >>> Activated(GAP(), "sigmoid")(torch.zeros(1, 2, 4, 4), torch.ones(1, 2))
    tensor([[0.5000, 0.5000]])
    """

    def __init__(self, pooling: Callable[[Tensor, Tensor], Tensor], activation: str) -> None:
        self.pooling, self.name = pooling, activation
        self.activation = last_activation(activation)

    def __call__(self, maps: Tensor, labels: Tensor) -> Tensor:
        """(N, C, h, w) class maps and (N, C) labels in {0, 1} -> (N, C)."""
        return self.activation(self.pooling(maps, labels))

    def __repr__(self) -> str:
        return f"Activated({self.pooling!r}, {self.name!r})"


class GlobalMax(Described):
    """Global max pooling; see `ribseg.functional.global_max`."""

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return global_max(maps)


class LogSumExp(Described):
    """Log-sum-exp pooling; see `ribseg.functional.log_sum_exp`.

    Args:
        sharpness: r > 0.

    Raises:
        ConfigError: it is out of range.
    """

    def __init__(self, sharpness: float = 5.0) -> None:
        check_number("sharpness", sharpness, above=0)
        self.sharpness = sharpness

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return log_sum_exp(maps, self.sharpness)


class TopK(Described):
    """The mean of the highest values; see `ribseg.functional.top_k`.

    Args:
        share: of the locations, in (0, 1].

    Raises:
        ConfigError: it is out of range.
    """

    def __init__(self, share: float = 0.2) -> None:
        check_number("share", share, high=1, above=0)
        self.share = share

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return top_k(maps, self.share)


class GeneralizedMean(Described):
    """Generalized-mean pooling; see `ribseg.functional.generalized_mean`.

    Args:
        power: p > 0.

    Raises:
        ConfigError: it is out of range.
    """

    def __init__(self, power: float = 3.0) -> None:
        check_number("power", power, above=0)
        self.power = power

    def __call__(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, h, w) class maps -> (N, C) logits."""
        return generalized_mean(maps, self.power)


# Ours, each of which pools a class without looking at the others; what one brings oneself may mix them.
APART = (GAP, GNDRP, GlobalMax, LogSumExp, TopK, GeneralizedMean)
