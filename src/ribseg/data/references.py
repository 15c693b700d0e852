"""Reference images of RIB: random training images that share no class with the image that is adapted."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from typing import NamedTuple

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from ribseg.data.ids import Ids
from ribseg.data.image_pool import ImagePool
from ribseg.data.transforms import seeded
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError, DataError

Batch = tuple[Tensor, Tensor] | tuple[None, None]


def rng(seed: int, *key: str | int) -> np.random.Generator:
    """A random generator that is a function of its arguments alone: not of process, platform or hash seed.

    >>> int(rng(0, "2007_000032", 3).integers(1000)) == int(rng(0, "2007_000032", 3).integers(1000))
    True
    """
    text = json.dumps([int(seed), *(part if isinstance(part, str) else int(part) for part in key)])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


class ReferenceSampler:
    """Draws label-disjoint images from a label matrix; no file is looked at.

    Args:
        ids: N image ids; `Ids` are shared, not copied.
        labels: (N, C) bool; images without any label serve as references, too.
        seed: of the experiment.

    Raises:
        DataError: if ids and labels differ in number.
    """

    def __init__(self, ids: Sequence[str], labels: np.ndarray, seed: int = 0) -> None:
        if labels.ndim != 2 or len(labels) != len(ids):
            raise DataError(f"expected labels ({len(ids)}, C), found {labels.shape}.")
        self.ids = Ids.of(ids)
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
        own = self.ids.find(image_id)
        if own >= 0:
            taken[own] = True
        return np.flatnonzero(~taken)

    def indices(self, image_id: str, labels: np.ndarray | Tensor, step: int, count: int) -> np.ndarray:
        """The references of one step, a function of (seed, image id, step).

        The pool is shuffled once per image and dealt out in turn, so that no image comes twice before all
        have come; then it is shuffled anew.

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


class Started(NamedTuple):
    """A batch that threads are writing: rows of the data set, the images, and who writes them."""

    chosen: np.ndarray
    images: Tensor
    jobs: list[Future[None]]


class ReferenceBatches:
    """Batches of augmented reference images, a function of (seed, image id, step) alone.

    Args:
        dataset: where the images come from; the sampler's ids are its ids.
        sampler: says which images.
        transform: the training transform; its random stream is set anew for each image of a batch.
        batch_size: B, reference images per step.
        threads: 0 makes each batch when it is asked for; else that many threads decode and augment while the
            consumer computes, one step ahead. The batches are the same.
        pool: the dataset's images, decoded: by number, (H, W, 3) uint8. None decodes at each draw.
        pin: batches come in pinned memory, from where they travel to a GPU while it computes.

    Raises:
        ConfigError: if batch_size is not positive, threads is negative, or the pool is another data set's.
    """

    def __init__(
        self,
        dataset: VOCFolder,
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
        """Yields, per step, (images (B, 3, S, S) float32, labels (B, C) float32), lazily.

        Args:
            image_id: the image that is adapted.
            labels: (C,) in {0, 1}, its classes.
            steps: how many batches there are at most.

        Yields:
            A batch, or (None, None) if no image is free of the given classes.
        """
        if self.threads == 0:
            yield from (self.batch(image_id, labels, step) for step in range(steps))
            return
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="references")
        try:
            ahead = self._submit(pool, image_id, labels, 0) if steps > 0 else None
            for step in range(steps):
                now, ahead = (
                    ahead,
                    self._submit(pool, image_id, labels, step + 1) if step + 1 < steps else None,
                )
                yield self._gather(now)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def batch(self, image_id: str, labels: np.ndarray | Tensor, step: int) -> Batch:
        """The batch of one step; see `__call__`."""
        chosen = self.sampler.indices(image_id, labels, step, self.batch_size)
        images = self._empty(len(chosen))
        for row, index in enumerate(chosen):
            self._write(images[row], self.transform, index, image_id, step, row)
        return self._with_labels(images, chosen)

    def _empty(self, rows: int) -> Tensor:
        # Written into row by row: at the published size a second copy would be another 60 MB a step.
        return torch.empty((rows, *self._shape), pin_memory=self.pin and rows > 0)

    def _write(
        self, target: Tensor, transform: A.Compose, index: int, image_id: str, step: int, row: int
    ) -> None:
        seed = int(rng(self.sampler.seed, "augmentation", image_id, step, row).integers(2**63))
        image = self.dataset.image(self.sampler.ids[index]) if self.pool is None else self.pool[index]
        # numpy copies without torch's thread pool, which several threads at once would fight over.
        target.numpy()[...] = seeded(transform, seed)(image=image)["image"].numpy()

    def _with_labels(self, images: Tensor, chosen: np.ndarray) -> Batch:
        if len(chosen) == 0:
            return None, None
        return images, torch.from_numpy(self.dataset.labels[chosen]).float()

    def _submit(
        self, pool: ThreadPoolExecutor, image_id: str, labels: np.ndarray | Tensor, step: int
    ) -> Started:
        chosen = self.sampler.indices(image_id, labels, step, self.batch_size)
        images = self._empty(len(chosen))
        # A transform carries its random stream: two threads must not share one.
        jobs = [
            pool.submit(self._write, images[row], deepcopy(self.transform), index, image_id, step, row)
            for row, index in enumerate(chosen)
        ]
        return Started(chosen, images, jobs)

    def _gather(self, started: Started | None) -> Batch:
        assert started is not None  # the loop submits a step before it gathers it
        for job in started.jobs:
            job.result()
        return self._with_labels(started.images, started.chosen)
