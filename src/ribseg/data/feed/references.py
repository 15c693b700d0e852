"""Reference images of RIB: random training images without any class of the adapted image.

docs/method.md, section 3.3.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from typing import Any

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from ribseg.data.augment.transforms import seeded
from ribseg.data.base import BaseDataset
from ribseg.data.feed.image_pool import ImagePool
from ribseg.data.feed.sampler import ReferenceSampler
from ribseg.errors import ConfigError
from ribseg.seeds import rng
from ribseg.types import Batch


class PerThread(threading.local):
    """A copy of a transform for each thread, because a transform has a random generator."""

    def __init__(self, transform: A.Compose) -> None:
        self.transform = deepcopy(transform)


class PrefetchedBatches(Iterator[Batch]):
    """An iterator over batches that threads prepare one step ahead of the consumer.

    The threads end with the iterator, also if it is deleted before its end; pending rows are cancelled.

    Args:
        begin: step and a map function -> a function that waits for the batch and returns it.
        steps: number of batches, at least one.
        threads: number of threads for the rows of a batch.
    """

    def __init__(self, begin: Callable[..., Callable[[], Batch]], steps: int, threads: int) -> None:
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="references")
        self._begin = partial(begin, apply=self._workers.map)
        self._step, self._steps = 0, steps
        self._pending = self._begin(0)

    def __next__(self) -> Batch:
        if self._step == self._steps:
            raise StopIteration
        current, self._step = self._pending, self._step + 1
        if self._step < self._steps:
            self._pending = self._begin(self._step)
        return current()

    def close(self) -> None:
        """Ends the threads after their current images."""
        self._step = self._steps
        self._workers.shutdown(wait=False, cancel_futures=True)

    __del__ = close


class ReferenceBatches:
    """Batches of augmented reference images, a function of (seed, image id, step) alone.

    Args:
        dataset: of the images, with the ids of the sampler.
        sampler: draws the images.
        transform: the training transform; it is seeded for each image of a batch.
        batch_size: B, reference images per step.
        threads: that prepare batches one step ahead; 0 makes each batch on demand. The batches are the same.
        pool: the dataset's decoded images; None decodes at each draw.
        pin: return batches in pinned memory, for asynchronous copies to a GPU.

    Raises:
        ConfigError: if batch_size is not positive, threads is negative, or the pool is of another data set.
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
    ) -> None:
        if batch_size < 1 or threads < 0:
            raise ConfigError(f"expected batch_size >= 1 and threads >= 0, found {batch_size} and {threads}.")
        if pool is not None and len(pool) != len(dataset):
            raise ConfigError(f"expected a pool of {len(dataset)} images, {pool.folder} has {len(pool)}.")
        self.dataset, self.sampler, self.transform = dataset, sampler, transform
        self.batch_size, self.threads, self.pool, self.pin = batch_size, threads, pool, pin
        self._shape = tuple(deepcopy(transform)(image=np.zeros((8, 8, 3), np.uint8))["image"].shape)

    def __call__(self, image_id: str, labels: np.ndarray | Tensor, steps: int) -> Iterator[Batch]:
        """Yields, per step, (images (B, 3, S, S) float32, labels (B, C) float32) on the CPU, lazily.

        Args:
            image_id: the adapted image.
            labels: (C,) in {0, 1}, its classes.
            steps: number of batches.

        Yields:
            A batch, or (None, None) if there is no reference image.
        """
        begin = partial(self._begin, image_id, torch.as_tensor(labels).cpu(), PerThread(self.transform))
        if self.threads and steps:
            return PrefetchedBatches(begin, steps, self.threads)
        return (begin(step)() for step in range(steps))

    def batch(self, image_id: str, labels: np.ndarray | Tensor, step: int) -> Batch:
        """The batch of one step; see `__call__`."""
        return self._begin(image_id, torch.as_tensor(labels), PerThread(self.transform), step)()

    def _begin(
        self, image_id: str, labels: Tensor, own: PerThread, step: int, apply: Callable[..., Any] = map
    ) -> Callable[[], Batch]:
        """Draws the images of a step; the returned function waits for the batch.

        `apply` maps the function that writes a crop over the rows.
        """
        chosen = self.sampler.indices(image_id, labels, step, self.batch_size)
        images = torch.empty(len(chosen), *self._shape, pin_memory=self.pin and len(chosen) > 0)

        def write(row: int) -> None:
            index, seed = int(chosen[row]), rng(self.sampler.seed, "augmentation", image_id, step, row)
            image = self.dataset.image(self.sampler.ids[index]) if self.pool is None else self.pool[index]
            crop = seeded(own.transform, int(seed.integers(2**63)))(image=image)["image"]
            # numpy copies without torch's thread pool, for which several threads would compete.
            images[row].numpy()[...] = crop.numpy()

        rows = apply(write, range(len(chosen)))

        def finished() -> Batch:
            deque(rows, maxlen=0)  # waits for all rows, or raises the error of one
            if len(chosen) == 0:
                return None, None
            return images, torch.from_numpy(self.dataset.labels[chosen]).float()

        return finished
