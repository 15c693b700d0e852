"""Which reference images RIB draws: random training images without any class of the adapted image."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ribseg.errors import DataError
from ribseg.seeds import rng

BLOCK = 128  # label sets that are compared at a time


class ReferenceSampler:
    """Draws label-disjoint images from a label matrix, without reading files.

    Args:
        ids: N image ids.
        labels: (N, C) bool; images without any label are references for all images.
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
        # A row per class: an image has few classes, and only their rows are read.
        self._images = np.ascontiguousarray((labels > 0).T)
        self._last: tuple[str, int, np.ndarray, np.ndarray] | None = None

    def candidates(self, image_id: str, labels: Any) -> np.ndarray:
        """Indices of the images without any class of `labels` (C,), except itself: (M,) int64, ascending."""
        target = np.asarray(labels)
        if target.shape != self._images.shape[:1]:
            raise DataError(f"expected labels ({len(self._images)},) of {image_id}, found {target.shape}.")
        taken = np.logical_or.reduce(self._images[target > 0], axis=0)
        if image_id in self._rows:
            taken[self._rows[image_id]] = True
        return np.flatnonzero(~taken)

    def has_references(self, labels: np.ndarray) -> np.ndarray:
        """Whether each of M images has a reference image: (M, C) -> (M,) bool.

        For images without a label, which are not adapted, True if there is another image.
        """
        sets, inverse = _distinct(labels > 0)
        others, _ = _distinct(self._images.T)
        others = others[np.argsort(others.sum(1), kind="stable")].astype(np.float32)
        alive = np.arange(len(sets))  # those that share a class with every training image so far
        while len(others) and len(alive):
            block, others = others[:BLOCK], others[BLOCK:]
            alive = alive[(sets[alive].astype(np.float32) @ block.T > 0).all(1)]
            # A superset of a compared label set shares its classes, so it need not be compared.
            others = others[(others @ block.T < block.sum(1)).all(1)]
        found = np.ones(len(sets), dtype=bool)
        found[alive] = False
        return found[inverse]

    def indices(self, image_id: str, labels: Any, step: int, count: int) -> np.ndarray:
        """The reference images of one step, a function of (seed, image id, step).

        The candidates of an image are shuffled and drawn in turn, so that none repeats before all have been
        drawn; then they are shuffled again.

        Args:
            image_id: the adapted image; need not be among the ids.
            labels: (C,) in {0, 1}, its classes.
            step: from 0.
            count: number of references.

        Returns:
            (count,) int64 indices into `ids`; empty if there is no candidate.
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
        """The candidates in the order of a round; cached, because the next steps use the same round."""
        last = self._last
        if last is None or last[:2] != (image_id, number) or not np.array_equal(last[2], candidates):
            order = rng(self.seed, "references", image_id, number).permutation(candidates)
            self._last = last = (image_id, number, candidates, order)
        return last[3]


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of (N, C) bool rows, and the index of each row among them."""
    packed = np.packbits(rows, axis=1)  # ten times as fast to sort
    _, first, inverse = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    return rows[first], inverse.ravel()
