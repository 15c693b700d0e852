"""Context managers that restore training flags, weights, gradients and autocast."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Sets evaluation mode inside; restores every training flag afterwards, also after an error."""
    flags = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, flag in flags:
            child.training = flag


@contextmanager
def restored(trained: Sequence[nn.Parameter], module: nn.Module) -> Iterator[None]:
    """Makes only `trained` learn inside; restores values, gradients and flags, also after an error.

    Args:
        trained: parameters whose values may change; their gradients are cleared first.
        module: its other parameters do not require gradients inside.
    """
    values = [parameter.detach().clone() for parameter in trained]
    state = [(p, p.grad, p.requires_grad) for p in (*module.parameters(), *trained)]
    try:
        for parameter, _, _ in state:
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
            parameter.grad = None
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, values, strict=True):
                parameter.copy_(value)
        for parameter, grad, requires_grad in state:
            parameter.grad = grad
            parameter.requires_grad_(requires_grad)


@contextmanager
def autocast_without_cache() -> Iterator[None]:
    """Disables the weight cache of a surrounding `torch.autocast`.

    With the cache, weight updates inside the autocast block would have no effect, and the cast weights of
    each step would stay in memory.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
