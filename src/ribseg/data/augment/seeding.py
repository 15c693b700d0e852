"""Reproducible training data: each sample is a function of (seed, epoch, image id).

A sampler decides the images of an epoch, their order and their process from (seed, epoch) alone; a data set
seeds all random generators for each item with (seed, epoch, image id). So samples do not depend on the number
of workers or on earlier samples, and several processes divide the batches of a single process among them.
"""

import warnings
from collections.abc import Iterator, Sized
from copy import copy, deepcopy
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from ribseg.data.augment.streams import AUGMENTATIONS, generators_of, reseed, seeded_globals
from ribseg.data.augment.transforms import worker_init_fn
from ribseg.errors import ConfigError
from ribseg.functional.random import rng
from ribseg.workers import process_count

Place = tuple[int, int]  # index of an image, epoch


def shuffled(seed: int, epoch: int, images: int) -> np.ndarray:
    """The shuffled order of an epoch's images: (images,) int64."""
    return rng(seed, "order", epoch).permutation(images)


class EpochSampler(DistributedSampler[Place]):
    """This process's share of each batch of an epoch, in an order that is a function of (seed, epoch).

    For a DataLoader with batch size `batch_size / processes`. An incomplete last batch, whose images would
    have more weight, is dropped unless it is the only one. Then it is divided as evenly as possible; with
    fewer images than processes some repeat, because all processes need the same number of steps.

    Lightning leaves a `DistributedSampler` unchanged and sets its epoch. Without a Trainer each pass is the
    next epoch.

    Args:
        images: number of images.
        batch_size: of one step, over all processes.
        seed: of the order.
        epoch: of the next pass.
        rank: of this process.
        processes: number of processes.

    Raises:
        ConfigError: the batch size is not a multiple of the number of processes, or there is no image.

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
        if self.num_replicas == 1 < process_count():
            warnings.warn(
                f"these batches were made for one process, and there are {process_count()}: each sees all "
                "images. Pass the data module to the Trainer (datamodule=...), not a loader made before.",
                stacklevel=2,
            )
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
        for begin, end in self._bounds:
            batch = np.resize(np.arange(begin, end), max(end - begin, self.num_replicas))
            yield np.array_split(batch, self.num_replicas)[self.rank].tolist()


class SeededDataset(Dataset[Any]):
    """A data set whose items are functions of (seed, epoch, image id), for the indices of `EpochSampler`.

    Before each item it seeds: albumentations' transforms and the generators of random, numpy and torch that
    the data set or its transforms have as attributes; and the global generators of random, numpy and torch
    (CPU), whose states are restored afterwards. torch uses one thread, as in a worker. Other generators, such
    as global variables of a module, are not seeded.

    Args:
        dataset: its `ids` are the image ids, else the indices. It is copied with albumentations' `transform`.
        seed: of the augmentation.

    A plain index means epoch 0, a list of indices a list of items.
    """

    def __init__(self, dataset: Dataset[Any], seed: int = 0) -> None:
        self.dataset, self.seed = copy(dataset), seed
        transform = getattr(dataset, "transform", None)
        if isinstance(
            transform, AUGMENTATIONS
        ):  # others may share state with objects that must not be copied
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
        with seeded_globals(draw):
            for generator in self._generators:
                reseed(generator, int(draw.integers(2**63)))
            return self.dataset[index]

    @cached_property
    def _generators(self) -> list[Any]:
        """The generators of the data set, searched for once per process."""
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
    """A DataLoader of shuffled batches with random augmentation; each pass is the next epoch.

    Args:
        dataset: with items for `default_collate`, see `SeededDataset`.
        batch_size: over all processes.
        seed: of order and augmentation.
        num_workers: changes only the speed.
        epoch: of the first pass.
        rank: of this process.
        processes: number of processes.

    Raises:
        ConfigError: the batch size is not a multiple of the number of processes, or there is no image.
    """
    data = SeededDataset(dataset, seed)
    sampler = EpochSampler(len(data), batch_size, seed, epoch, rank, processes)
    return DataLoader(data, batch_size // processes, sampler=sampler, **loader_settings(num_workers))


def validation_loader(
    dataset: Dataset[Any], batch_size: int, num_workers: int = 0, rank: int = 0, processes: int = 1
) -> DataLoader[Any]:
    """A DataLoader of the `ValidationBatches` of a data set; random items are the same in every pass.

    Args:
        dataset: with items for `default_collate`.
        batch_size: over all processes.
        num_workers: changes only the speed.
        rank: of this process.
        processes: number of processes.

    Raises:
        ConfigError: the batch size is not a multiple of the number of processes.
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
    """Common settings of DataLoaders that are iterated more than once."""
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,  # else each epoch would start new ones
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": worker_init_fn,
        # Otherwise a DataLoader draws from the global generator, as the network's dropout does.
        "generator": torch.Generator(),
    }


def is_seeded(loader: DataLoader[Any]) -> bool:
    """Whether a loader's samples do not depend on workers and processes, as those of `training_loader`."""
    return isinstance(loader.sampler, EpochSampler) and isinstance(loader.dataset, SeededDataset)


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


def _collate(items: Any) -> Any:
    return default_collate(items if isinstance(items, list) else [items])
