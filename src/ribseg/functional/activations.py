"""Last activations to compare in the analysis of the information bottleneck (RIB paper, section 3)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.errors import ConfigError

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    # saturate in both directions
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softsign": F.softsign,
    # do not saturate towards plus infinity
    "none": lambda logits: logits,
    "relu": F.relu,
    "elu": F.elu,
}
RANGES = {"sigmoid": (0.0, 1.0), "relu": (0.0, 1.0), "none": (0.0, 1.0)}
"""Training targets of absent and present classes; (-1, 1) for the other activations."""


def last_activation(name: str) -> Activation:
    """The activation of that name; elementwise, any shape.

    Raises:
        ConfigError: unknown name.

    >>> last_activation("softsign")(torch.tensor([1.0, 3.0]))
    tensor([0.5000, 0.7500])
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"expected an activation {' | '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


def slope(activation: Activation, logits: Tensor) -> Tensor:
    """The derivative `a'(y)`, elementwise, of any differentiable activation.

    Args:
        activation: a.
        logits: y, any shape.

    Returns:
        The derivative, of the same shape.

    >>> slope(torch.sigmoid, torch.tensor([0.0]))
    tensor([0.2500])
    """
    with torch.enable_grad():
        point = logits.detach().clone().requires_grad_()
        return torch.autograd.grad(activation(point).sum(), point)[0]
