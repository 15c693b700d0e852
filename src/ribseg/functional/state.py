"""Contexts that leave things exactly as they were: training flags, weights, gradients, autocast."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every training flag as it was afterwards, also after an error."""
    flags = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, flag in flags:
            child.training = flag


@contextmanager
def restored(moving: Sequence[nn.Parameter], module: nn.Module) -> Iterator[None]:
    """Inside, only `moving` learns; afterwards values, gradients and flags are as they were.

    Also after an error.

    Args:
        moving: parameters whose values may change; they enter without gradients.
        module: every other parameter of it stops requiring gradients inside.
    """
    values = [parameter.detach().clone() for parameter in moving]
    state = [(p, p.grad, p.requires_grad) for p in (*module.parameters(), *moving)]
    try:
        for parameter, _, _ in state:
            parameter.requires_grad_(False)
        for parameter in moving:
            parameter.requires_grad_(True)
            parameter.grad = None
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moving, values, strict=True):
                parameter.copy_(value)
        for parameter, grad, requires_grad in state:
            parameter.grad = grad
            parameter.requires_grad_(requires_grad)


@contextmanager
def autocast_without_cache() -> Iterator[None]:
    """Inside, a caller's `torch.autocast` casts weights at each use instead of keeping the first cast.

    It keeps it for as long as its block lasts: updates inside the block would change nothing, and the cast
    weights of each step would stay in memory.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
