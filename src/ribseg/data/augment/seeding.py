"""Training data as a function of (seed, epoch, image id), whoever loads it.

A sampler says which images an epoch has, in which order and in which process, from (seed, epoch) alone; a
data set restarts every random stream of an item from (seed, epoch, image id). So neither the number of
workers nor what was loaded before changes a sample, and processes share out the batches that one process
would see.
"""

import warnings
from collections.abc import Iterator, Sized
from copy import copy, deepcopy
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from ribseg.data.augment.streams import AUGMENTATIONS, generators_of, own_streams, restart
from ribseg.data.augment.transforms import worker_init_fn
from ribseg.errors import ConfigError
from ribseg.functional.random import rng

Place = tuple[int, int]  # index of an image, epoch


def shuffled(seed: int, epoch: int, images: int) -> np.ndarray:
    """The order of an epoch's images: (images,) int64."""
    return rng(seed, "order", epoch).permutation(images)


class EpochSampler(DistributedSampler[Place]):
    """This process's share of each batch of an epoch, in an order that is a function of (seed, epoch).

    For a DataLoader of `batch_size / processes`. An incomplete last batch, which would weigh its images more,
    is left out, unless there is no other. That one is shared out as evenly as possible; with fewer images
    than processes some come twice, because a process without any would keep the others waiting.

    Lightning takes a `DistributedSampler` as it is and tells it the epoch. Without a Trainer each pass is the
    next epoch.

    Args:
        images: how many there are.
        batch_size: of one step, over all processes together.
        seed: of the order.
        epoch: of the next pass.
        rank: of this process.
        processes: how many there are.

    Raises:
        ConfigError: the batch does not divide among the processes, or there is no image.

    >>> one = list(EpochSampler(8, 4, seed=1))
    >>> first, second = (list(EpochSampler(8, 4, 1, rank=rank, processes=2)) for rank in range(2))
    >>> one == first[:2] + second[:2] + first[2:] + second[2:]
    True
    """

    def __init__(
        self, images: int, batch_size: int, seed: int = 0, epoch: int = 0, rank: int = 0, processes: int = 1
    ) -> None:
        share_of(batch_size, processes)
        if images < 1:
            raise ConfigError("expected images to learn from, got none")
        super().__init__(range(images), processes, rank, seed=seed)  # type: ignore[arg-type]
        self.images, self.batch_size = images, batch_size
        self.set_epoch(epoch)

    def __len__(self) -> int:
        steps = self.images // self.batch_size
        return steps * (self.batch_size // self.num_replicas) or len(self._part(np.arange(self.images)))

    def __iter__(self) -> Iterator[Place]:
        _warn_of_other_processes(self.num_replicas)
        epoch = self.epoch
        self.set_epoch(epoch + 1)
        order = shuffled(self.seed, epoch, self.images)
        for begin in range(0, max(self.images - self.batch_size, 0) + 1, self.batch_size):
            for index in self._part(order[begin : begin + self.batch_size]):
                yield int(index), epoch

    def _part(self, batch: np.ndarray) -> np.ndarray:
        if len(batch) < self.num_replicas:
            batch = np.resize(batch, self.num_replicas)
        return np.array_split(batch, self.num_replicas)[self.rank]


class ValidationBatches(DistributedSampler[list[int]]):
    """This process's share of each batch, as a list; each image comes once, all processes get equally many.

    Unequal numbers of steps would hang. So a last batch with fewer images than processes is joined to the one
    before it. Only where there are fewer images than processes in all some come twice.

    Args:
        images: how many there are.
        batch_size: of one step, over all processes together.
        rank: of this process.
        processes: how many there are.

    Raises:
        ConfigError: the batch does not divide among the processes.

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
        for begin, end in self._bounds:
            batch = np.resize(np.arange(begin, end), max(end - begin, self.num_replicas))
            yield np.array_split(batch, self.num_replicas)[self.rank].tolist()


class SeededDataset(Dataset[Any]):
    """A data set whose items are functions of (seed, epoch, image id), under the indices of `EpochSampler`.

    Before each item these are restarted: the transforms of albumentations and the generators of random, numpy
    and torch that the data set holds, itself or in its transforms; and the global streams of random, numpy
    and torch (CPU), which afterwards are as they were. torch computes on one thread, as it does in a worker.
    What else it draws from, such as a generator that is a variable of a module, it has to seed itself.

    Args:
        dataset: has `ids`, else the index stands for the image id. It is copied, and so is albumentations'
            `transform`.
        seed: of the augmentation.

    A plain index stands for epoch 0, a list of indices for a list of items.
    """

    def __init__(self, dataset: Dataset[Any], seed: int = 0) -> None:
        self.dataset, self.seed = copy(dataset), seed
        transform = getattr(dataset, "transform", None)
        if isinstance(transform, AUGMENTATIONS):  # others may belong to an object that is no one's to copy
            self.dataset.transform = deepcopy(transform)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        assert isinstance(self.dataset, Sized)
        return len(self.dataset)

    def __getitem__(self, place: int | Place | list[int]) -> Any:
        if isinstance(place, list):
            return [self[index] for index in place]
        index, epoch = place if isinstance(place, tuple) else (place, 0)
        ids = getattr(self.dataset, "ids", None)
        image_id = str(index if ids is None else ids[index])
        draw = rng(self.seed, "augmentation", epoch, image_id)
        with own_streams(draw):
            for generator in self._generators:
                restart(generator, int(draw.integers(2**63)))
            return self.dataset[index]

    @cached_property
    def _generators(self) -> list[Any]:
        """What is searched for only once in each process."""
        return generators_of(self.dataset)


def training_loader(
    dataset: Dataset[Any],
    batch_size: int,
    seed: int = 0,
    num_workers: int = 0,
    epoch: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> DataLoader[Any]:
    """Shuffled batches of a data set with random augmentation; each pass is the next epoch.

    Args:
        dataset: of items that `default_collate` can stack, see `SeededDataset`.
        batch_size: over all processes together.
        seed: of order and augmentation.
        num_workers: changes nothing but the speed.
        epoch: of the first pass.
        rank: of this process.
        processes: how many there are.

    Raises:
        ConfigError: the batch does not divide among the processes, or there is no image.
    """
    data = SeededDataset(dataset, seed)
    sampler = EpochSampler(len(data), batch_size, seed, epoch, rank, processes)
    return DataLoader(data, batch_size // processes, sampler=sampler, **loader_settings(num_workers))


def validation_loader(
    dataset: Dataset[Any], batch_size: int, num_workers: int = 0, rank: int = 0, processes: int = 1
) -> DataLoader[Any]:
    """Batches of a data set in its order, see `ValidationBatches`; what is random in an item never changes.

    Args:
        dataset: of items that `default_collate` can stack.
        batch_size: over all processes together.
        num_workers: changes nothing but the speed.
        rank: of this process.
        processes: how many there are.

    Raises:
        ConfigError: the batch does not divide among the processes.
    """
    data = SeededDataset(dataset)
    batches = ValidationBatches(len(data), batch_size, rank, processes)
    return DataLoader(
        data,
        batch_size=None,  # the sampler makes the batches
        sampler=batches,
        collate_fn=_collate,
        **loader_settings(num_workers),
    )


def loader_settings(num_workers: int) -> dict[str, Any]:
    """What all loaders that are passed through more than once have in common."""
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,  # else each epoch would start new ones
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": worker_init_fn,
        # Else a DataLoader draws from the global stream, which the network's dropout draws from.
        "generator": torch.Generator(),
    }


def is_seeded(loader: DataLoader[Any]) -> bool:
    """Whether neither workers nor processes change what a loader gives: as those of `training_loader`."""
    return isinstance(loader.sampler, EpochSampler) and isinstance(loader.dataset, SeededDataset)


def share_of(batch_size: int, processes: int, setting: str = "batch_size") -> int:
    """How much of a batch one process gets.

    Args:
        batch_size: over all processes together.
        processes: how many there are.
        setting: its name, for the message.

    Raises:
        ConfigError: it does not divide.
    """
    if batch_size < 1 or batch_size % processes:
        raise ConfigError(
            f"{setting}={batch_size} counts all processes together, but does not divide by the {processes} "
            "that there are; choose a multiple"
        )
    return batch_size // processes


def rank_and_processes() -> tuple[int, int]:
    """Rank of this process and number of processes, as torch.distributed knows them."""
    there = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if there else (0, 1)


def _warn_of_other_processes(processes: int) -> None:
    _, there = rank_and_processes()
    if processes == 1 < there:
        warnings.warn(
            f"these batches were made for one process, and there are {there}: each of them sees all images. "
            "Pass the data module to the Trainer (datamodule=...), not a loader that was made before.",
            stacklevel=3,
        )


def _collate(items: Any) -> Any:
    return default_collate(items if isinstance(items, list) else [items])
