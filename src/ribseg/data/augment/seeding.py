"""Reproducible training data: each sample is a function of (seed, epoch, image id).

A sampler decides the images of each batch, their order and their process from (seed, epoch) alone; a data set
seeds the random generators for each item with (seed, epoch, image id). So samples do not depend on the number
of workers or on earlier samples, a resumed training gets the batches of an uninterrupted one, and several
processes divide the batches of a single process among them.
"""

import random
import warnings
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from copy import copy, deepcopy
from itertools import count, pairwise
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from ribseg.data.augment.transforms import seeded
from ribseg.errors import ConfigError
from ribseg.seeds import rng
from ribseg.workers import process_count

Place = tuple[int, int]  # index of an image, epoch


class TrainingBatches(DistributedSampler[list[Place]]):
    """This process's share of each training batch: lists of (index, epoch) for a `SeededDataset`.

    The epochs, each in an order that is a function of (seed, epoch), are one endless sequence of images. By
    epochs an incomplete last batch, whose images would weigh more, is dropped unless it is the only one. Then
    it is divided as evenly as possible; with fewer images than processes some repeat, because all
    processes need the same number of steps. By iterations batches cross the ends of epochs.

    Lightning leaves a `DistributedSampler` unchanged and sets its epoch. Without a Trainer each pass is the
    next epoch.

    Args:
        images: number of images.
        batch_size: of one forward pass, over all processes.
        seed: of the order.
        epoch: of the next pass.
        rank: of this process.
        processes: number of processes.
        first: endless batches by iterations, from the one with this number on; None: those of an epoch.

    Raises:
        ConfigError: the batch size is not a multiple of the number of processes, or there is no image.

    >>> one = list(TrainingBatches(8, 4, seed=1))
    >>> first, second = (list(TrainingBatches(8, 4, 1, rank=rank, processes=2)) for rank in range(2))
    >>> one == [a + b for a, b in zip(first, second)]
    True
    >>> endless, later = iter(TrainingBatches(3, 2, first=0)), iter(TrainingBatches(3, 2, first=1))
    >>> next(endless) != next(endless) == next(later)
    True
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        processes: int = 1,
        first: int | None = None,
    ) -> None:
        share_of(batch_size, processes)
        if images < 1:
            raise ConfigError("expected images to learn from, got none")
        super().__init__(range(images), processes, rank, seed=seed)  # type: ignore[arg-type]
        self.images, self.batch_size, self.first = images, batch_size, first
        self.set_epoch(epoch)
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        if self.first is not None:
            raise TypeError("batches by iterations have no end")
        return max(self.images // self.batch_size, 1)

    def __iter__(self) -> Iterator[list[Place]]:
        if self.num_replicas == 1 < process_count():
            warnings.warn(
                f"these batches were made for one process, and there are {process_count()}: each sees all "
                "images. Pass the data module to the Trainer (datamodule=...), not a loader made before.",
                stacklevel=2,
            )
        for begin, end in self._bounds():
            yield [self._place(position) for position in _share(begin, end, self.rank, self.num_replicas)]

    def _bounds(self) -> Iterator[tuple[int, int]]:
        """Where each batch begins and ends in the sequence of all epochs."""
        size, begin = self.batch_size, self.epoch * self.images
        if self.first is not None:
            yield from ((number * size, (number + 1) * size) for number in count(self.first))
        self.set_epoch(self.epoch + 1)
        for number in range(len(self)):
            yield begin + number * size, begin + min((number + 1) * size, self.images)

    def _place(self, position: int) -> Place:
        """The image at a position in the sequence of all epochs."""
        epoch, place = divmod(position, self.images)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, rng(self.seed, "order", epoch).permutation(self.images)
        return int(self._order[1][place]), epoch


class ValidationBatches(DistributedSampler[list[int]]):
    """This process's share of each validation batch, as a list; each image is in one batch of one process.

    Unequal numbers of steps would hang, so a last batch with fewer images than processes is merged with the
    previous one. Only with fewer images than processes in total, some repeat.

    Args:
        images: number of images.
        batch_size: of one step, over all processes.
        rank: of this process.
        processes: number of processes.

    Raises:
        ConfigError: the batch size is not a multiple of the number of processes.

    >>> [list(ValidationBatches(5, 2, rank, 2)) for rank in range(2)]
    [[[0], [2, 3]], [[1], [4]]]
    """

    def __init__(self, images: int, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        share_of(batch_size, processes)
        super().__init__(range(images), processes, rank, shuffle=False)  # type: ignore[arg-type]
        begins = list(range(0, images, batch_size))
        if len(begins) > 1 and images - begins[-1] < processes:
            begins.pop()
        self._bounds = list(pairwise([*begins, images]))

    def __len__(self) -> int:
        return len(self._bounds)

    def __iter__(self) -> Iterator[list[int]]:
        return (_share(begin, end, self.rank, self.num_replicas) for begin, end in self._bounds)


class SeededDataset(Dataset[Any]):
    """A data set whose items are functions of (seed, epoch, image id), for the lists of a sampler above.

    Before each item it seeds the global generators of random, numpy and torch (CPU), whose states are
    restored afterwards, and albumentations' transforms that are attributes of the data set. A data set with
    generators of its own has a method `reseed(seed)`, which is called then. torch uses one thread.

    Args:
        dataset: its `ids` are the image ids, else the indices. It is copied with albumentations' transforms.
        seed: of the augmentation.

    A plain index means epoch 0.
    """

    def __init__(self, dataset: Dataset[Any], seed: int = 0) -> None:
        self.dataset, self.seed = copy(dataset), seed
        self.transforms = []
        for name, value in vars(dataset).items():
            # Others may share state with objects that must not be copied.
            if isinstance(value, A.BaseCompose | A.BasicTransform):
                self.transforms.append(deepcopy(value))
                setattr(self.dataset, name, self.transforms[-1])

    def __len__(self) -> int:
        assert isinstance(self.dataset, Sized)
        return len(self.dataset)

    def __getitem__(self, place: int | Place | list[int] | list[Place]) -> Any:
        if isinstance(place, list):
            return [self[one] for one in place]
        index, epoch = place if isinstance(place, tuple) else (place, 0)
        ids = getattr(self.dataset, "ids", None)
        draw = rng(self.seed, "augmentation", epoch, str(index if ids is None else ids[index]))
        with seeded_globals(draw):
            for transform in self.transforms:
                seeded(transform, int(draw.integers(2**63)))
            if hasattr(self.dataset, "reseed"):
                self.dataset.reseed(int(draw.integers(2**63)))
            return self.dataset[index]


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


def batch_loader(
    dataset: Dataset[Any], batches: TrainingBatches | ValidationBatches, num_workers: int = 0, seed: int = 0
) -> DataLoader[Any]:
    """A DataLoader of the batches that a sampler lists.

    Args:
        dataset: with items for `default_collate`; made a `SeededDataset`.
        batches: the sampler.
        num_workers: changes only the speed.
        seed: of the augmentation.
    """
    data = SeededDataset(dataset, seed)
    return DataLoader(
        data, batch_size=None, sampler=batches, collate_fn=_collate, **loader_settings(num_workers)
    )


def _collate(items: Any) -> Any:
    # Single items come from a sampler of Lightning's, as with `overfit_batches`.
    return default_collate(items if isinstance(items, list) else [items])


def loader_settings(num_workers: int) -> dict[str, Any]:
    """Common settings of DataLoaders that are iterated more than once."""
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,  # else each epoch would start new ones
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _one_thread,
        # Otherwise a DataLoader draws from the global generator, as the network's dropout does.
        "generator": torch.Generator(),
    }


def _one_thread(worker: int) -> None:
    """Turns off OpenCV's threads: the workers run in parallel already. Seeds nothing, see `SeededDataset`."""
    cv2.setNumThreads(0)


def is_seeded(loader: DataLoader[Any]) -> bool:
    """Whether a loader's samples do not depend on workers and processes, as those of `batch_loader`."""
    return isinstance(loader.sampler, TrainingBatches) and isinstance(loader.dataset, SeededDataset)


def share_of(batch_size: int, processes: int, setting: str = "batch_size") -> int:
    """The batch size of one process.

    Args:
        batch_size: over all processes.
        processes: number of processes.
        setting: name for the error message.

    Raises:
        ConfigError: the batch size is not a multiple of the number of processes.
    """
    if batch_size < 1 or batch_size % processes:
        raise ConfigError(
            f"{setting}={batch_size} counts all processes together, but does not divide by the {processes} "
            "that there are; choose a multiple"
        )
    return batch_size // processes


def _share(begin: int, end: int, rank: int, processes: int) -> list[int]:
    """A process's part of the positions from `begin` up to `end`; some repeat if these are fewer."""
    positions = np.resize(np.arange(begin, end), max(end - begin, processes))
    return np.array_split(positions, processes)[rank].tolist()
