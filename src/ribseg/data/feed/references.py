"""Reference images of RIB: random training images that share no class with the image that is adapted.

docs/method.md, section 3.3.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from ribseg.data.augment.transforms import seeded
from ribseg.data.base import BaseDataset
from ribseg.data.feed.image_pool import ImagePool
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

    def candidates(self, image_id: str, labels: np.ndarray | Tensor) -> np.ndarray:
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

        The candidates are shuffled once per image and dealt out in turn, so that none comes twice before all
        have come; then they are shuffled again.

        Args:
            image_id: the image that is adapted; need not be among the ids.
            labels: (C,) in {0, 1}, its classes.
            step: 0 for the first.
            count: how many references.

        Returns:
            (count,) int64 indices into `ids`; empty if no image is free of the given classes.
        """
        candidates = self.candidates(image_id, labels)
        if len(candidates) == 0:
            return candidates
        places = np.arange(step * count, (step + 1) * count)
        rounds = places // len(candidates)
        chosen = np.empty(count, dtype=np.int64)
        for number in np.unique(rounds):
            shuffled = self._shuffled(image_id, int(number), candidates)
            chosen[rounds == number] = shuffled[places[rounds == number] % len(candidates)]
        return chosen

    def _shuffled(self, image_id: str, number: int, candidates: np.ndarray) -> np.ndarray:
        """The candidates in the order of a round; kept, as the next steps deal out of the same round."""
        last = self._last
        if last is None or last[:2] != (image_id, number) or not np.array_equal(last[2], candidates):
            order = rng(self.seed, "references", image_id, number).permutation(candidates)
            self._last = last = (image_id, number, candidates, order)
        return last[3]


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ones of (N, C) bool rows, and for each row which of them it is."""
    packed = np.ascontiguousarray(np.packbits(rows, axis=1))
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return rows[first], inverse.ravel()


class PerThread(threading.local):
    """A copy of a transform for each thread: a transform holds its random stream."""

    def __init__(self, transform: A.Compose) -> None:
        self.transform = deepcopy(transform)


class Begun(NamedTuple):
    """A batch that is being made.

    Attributes:
        images: (B, 3, S, S) float32, whose rows are being written.
        labels: (B, C) float32; B is 0 if no image is free of the given classes.
        rows: one item for each row, once that is written; or the error that it ended in.
    """

    images: Tensor
    labels: Tensor
    rows: Iterator[None]

    def finished(self) -> Batch:
        """The batch, as soon as all rows are written."""
        for _ in self.rows:
            pass
        return (self.images, self.labels) if len(self.labels) else (None, None)


class Ahead(Iterator[Batch]):
    """Batches made by threads while their consumer computes: each is begun one step early, the first at once.

    The threads end with the iterator, also where it is dropped before its end; the rows that none of them has
    begun by then are given up.

    Args:
        begin: step, and what applies a function to many items (as `map` does) -> the batch of that step.
        steps: how many batches there are, at least one.
        threads: how many work on the rows of a batch.
    """

    def __init__(self, begin: Callable[..., Begun], steps: int, threads: int) -> None:
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="references")
        self._begin = partial(begin, apply=self._workers.map)
        self._step, self._steps = 0, steps
        self._begun = self._begin(0)

    def __next__(self) -> Batch:
        if self._step == self._steps:
            raise StopIteration
        current, self._step = self._begun, self._step + 1
        if self._step < self._steps:
            self._begun = self._begin(self._step)
        return current.finished()

    def close(self) -> None:
        """Ends the threads as soon as they have finished the images that they are at."""
        self._step = self._steps
        self._workers.shutdown(wait=False, cancel_futures=True)

    __del__ = close


class ReferenceBatches:
    """Batches of augmented reference images, a function of (seed, image id, step) alone.

    Args:
        dataset: where the images come from; the sampler's ids are its ids.
        sampler: says which images.
        transform: the training transform; it is seeded for each image of a batch.
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

        With threads the first batch is begun at once, the others one step ahead.

        Args:
            image_id: the image that is adapted.
            labels: (C,) in {0, 1}, its classes.
            steps: how many batches there are at most.

        Yields:
            A batch, or (None, None) if no image is free of the given classes.
        """
        begin = partial(self._begin, image_id, torch.as_tensor(labels).cpu(), PerThread(self.transform))
        if self.threads and steps:
            return Ahead(begin, steps, self.threads)
        return (begin(step).finished() for step in range(steps))

    def batch(self, image_id: str, labels: np.ndarray | Tensor, step: int) -> Batch:
        """The batch of one step; see `__call__`."""
        return self._begin(image_id, torch.as_tensor(labels), PerThread(self.transform), step).finished()

    def _begin(
        self, image_id: str, labels: Tensor, own: PerThread, step: int, apply: Callable[..., Any] = map
    ) -> Begun:
        """Draws the images of a step and has `apply` write their crops, each to its row."""
        chosen = self.sampler.indices(image_id, labels, step, self.batch_size)
        images = torch.empty(len(chosen), *self._shape, pin_memory=self.pin and len(chosen) > 0)

        def write(row: int) -> None:
            index, seed = int(chosen[row]), rng(self.sampler.seed, "augmentation", image_id, step, row)
            image = self.dataset.image(self.sampler.ids[index]) if self.pool is None else self.pool[index]
            crop = seeded(own.transform, int(seed.integers(2**63)))(image=image)["image"]
            # numpy copies without torch's thread pool, which several threads at once would fight over.
            images[row].numpy()[...] = crop.numpy()

        labels_of_chosen = torch.from_numpy(self.dataset.labels[chosen]).float()
        return Begun(images, labels_of_chosen, apply(write, range(len(chosen))))
