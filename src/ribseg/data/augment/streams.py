"""Seeding the random generators that a data set may use: global ones, and those in its attributes."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import albumentations as A
import numpy as np
import torch
from torch.utils.data import Dataset

from ribseg.data.augment.transforms import seeded

SEARCHED = 100  # maximum length of a list that is searched for generators; longer ones are data
AUGMENTATIONS = (A.BaseCompose, A.BasicTransform)
GENERATORS = (
    *AUGMENTATIONS,
    np.random.Generator,
    np.random.RandomState,
    random.Random,
    torch.Generator,
)


@contextmanager
def seeded_globals(draw: np.random.Generator) -> Iterator[None]:
    """Seeds the global generators from `draw` and uses one thread inside; restores all states afterwards.

    torch's generators on GPUs are not touched, because a network may be using them.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        random.seed(int(draw.integers(2**63)))
        np.random.seed(int(draw.integers(2**32)))
        torch.default_generator.manual_seed(int(draw.integers(2**63)))
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_num_threads(threads)


def generators_of(dataset: Dataset[Any]) -> list[Any]:
    """The `GENERATORS` in a data set's attributes, in short lists, and in its transforms."""
    found: dict[int, Any] = {}
    _search(dataset, found, set())
    return list(found.values())


def reseed(generator: Any, seed: int) -> None:
    """Seeds one of `GENERATORS`, in place."""
    if isinstance(generator, AUGMENTATIONS):
        seeded(generator, seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    elif isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    else:
        generator.seed(seed % 2**32)


def _search(value: Any, found: dict[int, Any], seen: set[int]) -> None:
    """Collects the generators in an object, recursively."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, GENERATORS):
        found[id(value)] = value
        return
    for part in _parts(value):
        _search(part, found, seen)


def _parts(value: Any) -> Iterable[Any]:
    """The attributes or items of a data set, a callable or a short list; nothing for other objects."""
    if isinstance(value, list | tuple | dict):
        parts = value.values() if isinstance(value, dict) else value
        return list(parts) if len(value) <= SEARCHED else []
    if isinstance(value, type) or not (isinstance(value, Dataset) or callable(value)):
        return []
    parts = list(getattr(value, "__dict__", {}).values())
    if isinstance(value, MethodType):
        parts += getattr(value.__self__, "__dict__", {}).values()
    if isinstance(value, FunctionType):
        cells = (cell.cell_contents for cell in value.__closure__ or ())
        parts += [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, partial):
        parts += [value.func, value.args, value.keywords]
    return parts
