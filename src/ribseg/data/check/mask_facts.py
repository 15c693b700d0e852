"""Statistics of the ids in the masks of a split, and of their agreement with the labels."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ribseg.data.io.masks import IGNORE

ENOUGH = 3  # images that a class needs for a judgement about its id
SELDOM, NEARLY_ALWAYS = 0.5, 0.9  # Jaccard index of the images that have a label and those that have an id


class MaskContent(NamedTuple):
    """The content of one mask.

    Attributes:
        size: (height, width).
        ids: that occur, ascending.
        pixels: number of pixels of each id.
        border: number of pixels of each id at the image border.
        colours: of each id in the palette, as 0xRRGGBB; empty for a gray mask.
    """

    size: tuple[int, int]
    ids: tuple[int, ...]
    pixels: tuple[int, ...]
    border: tuple[int, ...]
    colours: tuple[int, ...] = ()

    @property
    def classes(self) -> list[int]:
        """The class ids that occur: neither background nor ignore."""
        return [i for i in self.ids if 0 < i < IGNORE]


@dataclass(frozen=True)
class MaskFacts:
    """Statistics of the masks of a split, as plain values.

    Attributes:
        masks: number of masks.
        ids: rows (id, masks with it, pixels, pixels at image borders), of the ids that occur.
        labelled: number of images with a label.
        empty: how many of these have a mask without any class.
        differing: how many of these have a mask with other classes than the label.
        common: number of pairs of image and class on which label and mask agree.
        misfits: number of classes whose id seldom occurs in the masks of their images, see `renumbered`.
        renumbered: rows (class index, id) of these classes, if another id fits instead.
        judged: number of classes with enough images for this.
        colours: rows (id, number) of class ids with several colours in the palettes.
    """

    masks: int
    ids: list[list[int]]
    labelled: int
    empty: int
    differing: int
    common: int
    misfits: int
    renumbered: list[list[int]]
    judged: int
    colours: list[list[int]]

    def pixels(self, first: int, last: int, border: bool = False) -> int:
        """Number of pixels with ids first..last; with `border` only those at image borders."""
        return sum(row[3 if border else 2] for row in self.ids if first <= row[0] <= last)

    @property
    def foreground(self) -> int:
        """Number of pixels of classes."""
        return self.pixels(1, IGNORE - 1)


def mask_content(mask: np.ndarray, palette: np.ndarray | None = None) -> MaskContent:
    """The content of a mask.

    Args:
        mask: (H, W) uint8.
        palette: (256, 3) uint8 RGB; None for a gray mask.
    """
    height, width = mask.shape
    inner = mask[1:-1, 1:-1] if min(height, width) > 2 else mask[:0]
    all_, inside = (np.bincount(part.ravel(), minlength=256) for part in (mask, inner))
    ids = np.flatnonzero(all_)
    pixels, border = all_[ids], (all_ - inside)[ids]
    packed = np.zeros(0, int) if palette is None else palette[ids].astype(int) @ (1 << 16, 1 << 8, 1)
    return MaskContent((height, width), *(tuple(values.tolist()) for values in (ids, pixels, border, packed)))


def mask_facts(looks: Sequence[MaskContent | None], labels: np.ndarray) -> MaskFacts:
    """The statistics of the masks of a split.

    Args:
        looks: of N images; None without a usable mask.
        labels: (N, C) bool.
    """
    rows = [row for row, look in enumerate(looks) if look is not None]
    known_looks = [look for look in looks if look is not None]
    present, pixels, border = np.zeros((len(rows), 256), bool), np.zeros(256, int), np.zeros(256, int)
    colours: dict[int, set[int]] = defaultdict(set)
    for row, look in enumerate(known_looks):
        ids = list(look.ids)
        present[row, ids] = True
        pixels[ids] += look.pixels
        border[ids] += look.border
        for number, colour in zip(ids, look.colours, strict=False):  # a gray mask has none
            colours[number].add(colour)
    labels = labels[rows]
    classes, known = present[:, 1 : labels.shape[1] + 1], labels.any(1)
    moved, misfits, judged = renumbered(labels[known], present[known])
    masks = present.sum(0)
    return MaskFacts(
        masks=len(rows),
        ids=[[int(i), int(masks[i]), int(pixels[i]), int(border[i])] for i in np.flatnonzero(masks)],
        labelled=int(known.sum()),
        empty=int((known & ~classes.any(1)).sum()),
        differing=int((known & (labels != classes).any(1)).sum()),
        common=int((labels & classes).sum()),
        misfits=misfits,
        renumbered=moved,
        judged=judged,
        colours=[[i, len(colours[i])] for i in sorted(colours) if 0 < i < IGNORE and len(colours[i]) > 1],
    )


def renumbered(labels: np.ndarray, present: np.ndarray) -> tuple[list[list[int]], int, int]:
    """Classes whose id seldom occurs in the masks of their images, while another id nearly always does.

    Compares, by the Jaccard index, the set of images with the label to the sets of images with each id. This
    detects ids that begin at 0 instead of 1, or follow another order of the names, but tolerates noise.

    Args:
        labels: (N, C) bool.
        present: (N, 256) bool, whether a mask has an id.

    Returns:
        Rows (class index, id that fits instead); the number of classes whose id does not fit; and the number
        of classes with enough images for a judgement.
    """
    number = labels.shape[1]
    held = present[:, :IGNORE].astype(np.float32)
    common = labels.T.astype(np.float32) @ held
    images = labels.sum(0)
    union = images[:, None] + held.sum(0)[None] - common
    overlap = common / np.maximum(union, 1)
    own = overlap[np.arange(number), np.arange(number) + 1]
    best = overlap.argmax(1)
    # A class in all images cannot be told from the background.
    judged = (images >= ENOUGH) & (images < len(labels))
    misfits = judged & (own < SELDOM)
    moved = np.flatnonzero(misfits & (overlap.max(1) >= NEARLY_ALWAYS))
    return [[int(c), int(best[c])] for c in moved], int(misfits.sum()), int(judged.sum())
