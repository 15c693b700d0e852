"""Choosing the background score of localization maps in three ways, to be reported side by side.

- `oracle`: the best on the evaluated images. What papers print, and optimistic: it has seen the answers.
- `held_out`: the best on a part of the images, scored on the others.
- `unsupervised`: without ground truth. Otsu's criterion ("A threshold selection method from gray-level
  histograms", 1979) on the best scores of all pixels of all images that have a class: the threshold at which
  the mean scores of background and objects lie furthest apart, weighted by their sizes. Pooled, because a
  single image may be all object.

How many points of mIoU Otsu's threshold loses against the oracle's, on train / val: the demo data (250 / 150
images) CAM 1.3 / 1.2, RIB 0.0 / 0.2, feature norm 4.6 / 4.6, wrong class 2.5 / 2.6; CAM on MSRC photographs
(250 / 174) 2.3 / 1.8. For RIB on the demo data the thresholds are 0.28 and 0.27. Where scores are low and few
stand out, as with CAM there (oracle 0.03), the thresholds differ and the curve is flat.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from ribseg.data.references import rng
from ribseg.functional.evaluation import confusion_from_histogram, scores


class Choice(NamedTuple):
    """A background score, and what it gives.

    Attributes:
        threshold: background score.
        miou: on all images, in [0, 1]; None for `held_out`, whose threshold was chosen on some of them.
        miou_rest: on the images on which `held_out` was not chosen, so that the three can be compared.
    """

    threshold: float
    miou: float | None
    miou_rest: float


class ThresholdChooser:
    """Gathers the counts of a split, image by image, and chooses three ways.

    Args:
        thresholds: (T,) background scores, ascending.
        held_out: ids of the images to choose on; None: a half of them, see `in_first_half`.
        seed: of that half.
    """

    def __init__(self, thresholds: Tensor, held_out: Collection[str] | None = None, seed: int = 0) -> None:
        self.thresholds, self.seed = thresholds, seed
        self.held_out = None if held_out is None else frozenset(held_out)
        self._sums: dict[bool, Tensor] = {}
        self._pooled = torch.zeros(len(thresholds) + 1, dtype=torch.int64)

    def add(self, image_id: str, histogram: Tensor, pooled: Tensor) -> None:
        """Adds an image.

        Args:
            image_id: decides which part it belongs to.
            histogram: (C+1, C+1, T+1), `functional.threshold_histogram` of the maps and the mask.
            pooled: (T+1,), `score_histogram` of the maps.
        """
        chosen = self.held_out
        part = in_first_half(image_id, self.seed) if chosen is None else image_id in chosen
        self._sums[part] = self._sums.get(part, torch.zeros_like(histogram)) + histogram
        self._pooled += pooled

    def choose(self) -> dict[str, Choice]:
        """See `choose_thresholds`.

        Raises:
            ValueError: one of the parts has no image.
        """
        if set(self._sums) != {True, False}:
            raise ValueError(
                "expected some images to choose on and others to score, got only "
                f"{'the former' if True in self._sums else 'the latter'}; add more images or change held_out"
            )
        return choose_thresholds(self._sums[True], self._sums[False], self._pooled, self.thresholds)


def choose_thresholds(tuning: Tensor, rest: Tensor, pooled: Tensor, thresholds: Tensor) -> dict[str, Choice]:
    """Chooses by "oracle", "held_out" and "unsupervised", and scores all three.

    Args:
        tuning: (C+1, C+1, T+1) sum of `threshold_histogram` over the held-out images.
        rest: the same over the other images.
        pooled: (T+1,) sum of `score_histogram` over images, with or without masks.
        thresholds: (T,) ascending.
    """
    whole, other = _miou(tuning + rest), _miou(rest)
    places = {
        "oracle": int(whole.argmax()),
        "held_out": int(_miou(tuning).argmax()),
        "unsupervised": otsu(pooled, thresholds),
    }
    return {
        name: Choice(
            round(float(thresholds[place]), 6),
            None if name == "held_out" else float(whole[place]),
            float(other[place]),
        )
        for name, place in places.items()
    }


def score_histogram(maps: Tensor, thresholds: Tensor) -> Tensor:
    """Counts the pixels of an image by how many thresholds their best score exceeds; needs no mask.

    Args:
        maps: (K, H, W) float; an image without a class (K = 0) counts nothing: its pixels have no score.
        thresholds: (T,) ascending.

    Returns:
        (T+1,) int64.
    """
    bins = len(thresholds) + 1
    if len(maps) == 0:
        return torch.zeros(bins, dtype=torch.int64)
    best = maps.amax(0).flatten().to(thresholds.dtype)
    return torch.bincount(torch.searchsorted(thresholds, best, side="left"), minlength=bins)


def otsu(pooled: Tensor, thresholds: Tensor) -> int:
    """Index of the threshold with the highest variance between what lies below and what lies above.

    Of thresholds that separate the pixels equally, as in a gap between two peaks, the middle one; so of all
    thresholds where there is but one peak.

    Args:
        pooled: (T+1,) counts, see `score_histogram`.
        thresholds: (T,) ascending.

    Raises:
        ValueError: nothing was counted, or the lengths do not fit.

    >>> otsu(torch.tensor([0, 8, 0, 0, 2]), torch.tensor([0.0, 0.2, 0.4, 0.6]))
    2
    """
    if pooled.shape != (len(thresholds) + 1,) or not pooled.any():
        raise ValueError(
            f"expected counts of {len(thresholds) + 1} bins that are not all zero, got shape "
            f"{tuple(pooled.shape)} with the sum {int(pooled.sum())}; were all images without a class?"
        )
    counts, edges = pooled.double(), thresholds.double()
    # The score of a bin is its middle; the outer bins reach to the first and the last threshold.
    middle = torch.cat([edges[:1], (edges[:-1] + edges[1:]) / 2, edges[-1:]])
    below, mass = counts.cumsum(0)[:-1], (counts * middle).cumsum(0)[:-1]
    total, moment = counts.sum(), (counts * middle).sum()
    sizes = below * (total - below)  # zero where all pixels lie on one side
    spread = torch.where(sizes > 0, (moment * below / total - mass) ** 2 / sizes.clamp(min=1), 0)
    best = (spread >= spread.max() * (1 - 1e-9)).nonzero().flatten()
    return int(best[len(best) // 2])


def in_first_half(image_id: str, seed: int = 0, share: float = 0.5) -> bool:
    """Whether an image belongs to the part to choose on: a function of seed and id, not of the other images.

    Args:
        image_id: of the image.
        seed: of the draw.
        share: expected size of the part, in [0, 1].
    """
    return bool(rng(seed, "held_out", image_id).random() < share)


def _miou(histogram: Tensor) -> Tensor:
    """(T,) mIoU at every threshold."""
    return scores(confusion_from_histogram(histogram)).miou
