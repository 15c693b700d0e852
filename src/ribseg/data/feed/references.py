"""Reference images of RIB: random training images that share no class with the image that is adapted.

docs/method.md, section 3.3.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from ribseg.data.augment.transforms import is_train_transform
from ribseg.data.base import BaseDataset
from ribseg.data.feed.image_pool import ImagePool
from ribseg.data.feed.reference_crops import Crops, DeviceCrops, HostCrops, PerThread
from ribseg.errors import ConfigError, DataError
from ribseg.functional.random import rng

Batch = tuple[Tensor, Tensor] | tuple[None, None]
BLOCK = 128  # sets of labels that are compared at a time


class ReferenceSampler:
    """Draws label-disjoint images from a label matrix; no file is looked at.

    Args:
        ids: N image ids.
        labels: (N, C) bool; images without any label serve as references, too.
        seed: of the experiment.

    Raises:
        DataError: if ids and labels differ in number.
    """

    def __init__(self, ids: Sequence[str], labels: np.ndarray, seed: int = 0) -> None:
        if labels.ndim != 2 or len(labels) != len(ids):
            raise DataError(f"expected labels ({len(ids)}, C), found {labels.shape}.")
        self.ids = ids
        self._rows = {image_id: row for row, image_id in enumerate(ids)}
        self.seed = seed
        # A row per class: an image has few classes, and only their rows are looked at.
        self._images = np.ascontiguousarray((labels > 0).T)
        self._last: tuple[str, int, np.ndarray, np.ndarray] | None = None

    def pool(self, image_id: str, labels: np.ndarray | Tensor) -> np.ndarray:
        """The images that share no class with `labels` (C,), never itself: (M,) int64, ascending."""
        target = torch.as_tensor(labels).cpu().numpy().astype(np.float32)
        if target.shape != self._images.shape[:1]:
            raise DataError(f"expected labels ({len(self._images)},) of {image_id}, found {target.shape}.")
        taken = np.logical_or.reduce(self._images[target > 0], axis=0)
        if image_id in self._rows:
            taken[self._rows[image_id]] = True
        return np.flatnonzero(~taken)

    def has_references(self, labels: np.ndarray) -> np.ndarray:
        """Whether images have any reference image, for all at once: (M, C) -> (M,) bool.

        An image without a label has references unless it is the only image; nobody adapts to it.
        """
        sets, inverse = _distinct(labels > 0)
        others, _ = _distinct(self._images.T)
        others = others[np.argsort(others.sum(1), kind="stable")].astype(np.float32)
        alive = np.arange(len(sets))  # those that share a class with every training image so far
        while len(others) and len(alive):
            block, others = others[:BLOCK], others[BLOCK:]
            alive = alive[(sets[alive].astype(np.float32) @ block.T > 0).all(1)]
            # What holds a set with which a class is shared shares it, too.
            others = others[(others @ block.T < block.sum(1)).all(1)]
        found = np.ones(len(sets), dtype=bool)
        found[alive] = False
        return found[inverse]

    def indices(self, image_id: str, labels: np.ndarray | Tensor, step: int, count: int) -> np.ndarray:
        """The references of one step, a function of (seed, image id, step).

        The pool is shuffled once per image and dealt out in turn, so that no image comes twice before all
        have come; then it is shuffled again.

        Args:
            image_id: the image that is adapted; need not be among the ids.
            labels: (C,) in {0, 1}, its classes.
            step: 0 for the first.
            count: how many references.

        Returns:
            (count,) int64 indices into `ids`; empty if no image is free of the given classes.
        """
        pool = self.pool(image_id, labels)
        if len(pool) == 0:
            return pool
        places = np.arange(step * count, (step + 1) * count)
        rounds = places // len(pool)
        chosen = np.empty(count, dtype=np.int64)
        for number in np.unique(rounds):
            shuffled = self._shuffled(image_id, int(number), pool)
            chosen[rounds == number] = shuffled[places[rounds == number] % len(pool)]
        return chosen

    def _shuffled(self, image_id: str, number: int, pool: np.ndarray) -> np.ndarray:
        """The pool in the order of a round; kept, because the next steps deal out of the same round."""
        last = self._last
        if last is None or last[:2] != (image_id, number) or not np.array_equal(last[2], pool):
            order = rng(self.seed, "references", image_id, number).permutation(pool)
            self._last = last = (image_id, number, pool, order)
        return last[3]


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ones of (N, C) bool rows, and for each row which of them it is."""
    packed = np.ascontiguousarray(np.packbits(rows, axis=1))
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return rows[first], inverse.ravel()


class Started(NamedTuple):
    """A batch that is being made: rows of the data set, their crops, and the threads that make them."""

    chosen: np.ndarray
    crops: Crops
    jobs: list[Future[None]]


class ReferenceBatches:
    """Batches of augmented reference images, a function of (seed, image id, step) alone.

    Args:
        dataset: where the images come from; the sampler's ids are its ids.
        sampler: says which images.
        transform: the training transform; its random stream is restarted for each image of a batch.
        batch_size: B, reference images per step.
        threads: 0 makes each batch when it is asked for; else that many threads decode and augment while the
            consumer computes, one step ahead. The batches are the same.
        pool: the dataset's images, decoded: by number, (H, W, 3) uint8. None decodes at each draw.
        pin: batches come in pinned memory, from where they travel to a GPU while it computes.
        on_device: where an image's labels lie on a GPU, its batches are augmented there, with the same random
            numbers. Other transforms than `train_transform` are left to the CPU.

    Raises:
        ConfigError: if batch_size is not positive, threads is negative, or the pool is another data set's.
    """

    def __init__(
        self,
        dataset: BaseDataset,
        sampler: ReferenceSampler,
        transform: A.Compose,
        batch_size: int = 20,
        threads: int = 0,
        pool: ImagePool | None = None,
        pin: bool = False,
        on_device: bool = False,
    ) -> None:
        if batch_size < 1 or threads < 0:
            raise ConfigError(f"expected batch_size >= 1 and threads >= 0, found {batch_size} and {threads}.")
        if pool is not None and len(pool) != len(dataset):
            raise ConfigError(f"expected a pool of {len(dataset)} images, {pool.folder} has {len(pool)}.")
        self.dataset, self.sampler, self.transform = dataset, sampler, transform
        self.batch_size, self.threads, self.pool, self.pin = batch_size, threads, pool, pin
        self.on_device = on_device and is_train_transform(transform)
        self._transforms = PerThread(transform)
        self._pool: ThreadPoolExecutor | None = None
        self._threads_of: int | None = None  # the process that has them
        self._shape = tuple(deepcopy(transform)(image=np.zeros((8, 8, 3), np.uint8))["image"].shape)

    def __call__(self, image_id: str, labels: np.ndarray | Tensor, steps: int) -> Iterator[Batch]:
        """Yields, per step, (images (B, 3, S, S) float32, labels (B, C) float32), lazily.

        With threads the first batch is begun at once, the others one step ahead.

        Args:
            image_id: the image that is adapted.
            labels: (C,) in {0, 1}, its classes.
            steps: how many batches there are at most.

        Yields:
            A batch, or (None, None) if no image is free of the given classes. The labels lie on the CPU, the
            images too, unless they were augmented on a GPU.
        """
        start = partial(self._start, image_id, *self._prepare(labels))
        if self.threads == 0 or steps == 0:
            return (self._finish(start(step)) for step in range(steps))
        if self._threads_of != os.getpid():  # threads do not survive a fork
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="references")
            self._threads_of = os.getpid()
        batches = self._ahead(partial(start, pool=self._pool), steps)
        next(batches)  # begins the first; whoever drops it from now on cancels it
        return batches

    def _ahead(self, start: Callable[[int], Started], steps: int) -> Iterator[Batch]:
        """Nothing, once the first batch is begun; then the batches, each begun while that before is used."""
        begun = deque([start(0)])
        try:
            yield None, None
            for step in range(steps):
                if step + 1 < steps:
                    begun.append(start(step + 1))
                yield self._finish(begun[0])
                begun.popleft()
        finally:
            for job in (job for batch in begun for job in batch.jobs):  # nobody asks for them any more
                job.cancel()

    def __getstate__(self) -> dict[str, Any]:
        """What another process can take over: threads it makes itself."""
        return self.__dict__ | {"_pool": None, "_threads_of": None, "_transforms": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._transforms = PerThread(self.transform)

    def batch(self, image_id: str, labels: np.ndarray | Tensor, step: int) -> Batch:
        """The batch of one step; see `__call__`."""
        return self._finish(self._start(image_id, *self._prepare(labels), step))

    def _prepare(self, labels: np.ndarray | Tensor) -> tuple[Tensor, Callable[[int], Crops]]:
        """The labels on the CPU, where no step has to wait for them, and what starts a batch of crops."""
        labels, transforms = torch.as_tensor(labels), self._transforms
        if self.on_device and labels.is_cuda:
            device = labels.device
            return labels.cpu(), lambda rows: DeviceCrops(transforms, rows, device)
        return labels.cpu(), lambda rows: HostCrops(transforms, (rows, *self._shape), self.pin)

    def _start(
        self,
        image_id: str,
        labels: Tensor,
        start: Callable[[int], Crops],
        step: int,
        pool: ThreadPoolExecutor | None = None,
    ) -> Started:
        chosen = self.sampler.indices(image_id, labels, step, self.batch_size)
        crops = start(len(chosen))
        tasks = [(crops, row, int(index), image_id, step) for row, index in enumerate(chosen)]
        if pool is not None:
            return Started(chosen, crops, [pool.submit(self._put, *task) for task in tasks])
        for task in tasks:
            self._put(*task)
        return Started(chosen, crops, [])

    def _put(self, crops: Crops, row: int, index: int, image_id: str, step: int) -> None:
        seed = int(rng(self.sampler.seed, "augmentation", image_id, step, row).integers(2**63))
        image = self.dataset.image(self.sampler.ids[index]) if self.pool is None else self.pool[index]
        crops.put(row, image, seed)

    def _finish(self, started: Started) -> Batch:
        for job in started.jobs:
            job.result()
        if len(started.chosen) == 0:
            return None, None
        return started.crops.take(), torch.from_numpy(self.dataset.labels[started.chosen]).float()
