"""Random streams that a data set may draw from: the global ones, and those that it holds itself."""

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

SEARCHED = 100  # entries of a list up to which it is searched for random generators: longer ones are data
AUGMENTATIONS = (A.BaseCompose, A.BasicTransform)
GENERATORS = (
    *AUGMENTATIONS,
    np.random.Generator,
    np.random.RandomState,
    random.Random,
    torch.Generator,
)


@contextmanager
def own_streams(draw: np.random.Generator) -> Iterator[None]:
    """Global random streams that start from `draw`, and one thread; afterwards all is as it was.

    torch's streams on GPUs are left alone: a network may use them at the same time.
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
    """The `GENERATORS` that a data set holds: as attributes, in short lists, in its transforms."""
    found: dict[int, Any] = {}
    _search(dataset, found, set())
    return list(found.values())


def restart(generator: Any, seed: int) -> None:
    """Restarts one of `GENERATORS`, in place."""
    if isinstance(generator, AUGMENTATIONS):
        seeded(generator, seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    elif isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    else:
        generator.seed(seed % 2**32)


def _search(value: Any, found: dict[int, Any], seen: set[int]) -> None:
    """Gathers the generators that a data set or a transform holds."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, GENERATORS):
        found[id(value)] = value
        return
    for part in _parts(value):
        _search(part, found, seen)


def _parts(value: Any) -> Iterable[Any]:
    """What a data set, a callable or a short list consists of; other objects are not looked into."""
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
