"""What the values in the masks of a split say, and whether they agree with its labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ribseg.data.io.masks import IGNORE

ENOUGH = 3  # images of a class below which nothing is concluded from where its id occurs
SELDOM, NEARLY_ALWAYS = 0.5, 0.9  # Jaccard index of the images that have a label and those that have an id


class MaskLook(NamedTuple):
    """One mask; small, because there is one of these per image.

    Attributes:
        size: (height, width).
        ids: that occur, ascending.
        pixels: of each of them.
        border: the same of the outermost pixels.
        colours: of each of them in the palette, as 0xRRGGBB; empty in a gray mask.
    """

    size: tuple[int, int]
    ids: tuple[int, ...]
    pixels: tuple[int, ...]
    border: tuple[int, ...]
    colours: tuple[int, ...] = ()

    @property
    def classes(self) -> list[int]:
        """Ids of classes that occur: neither background nor ignore."""
        return [i for i in self.ids if 0 < i < IGNORE]


@dataclass(frozen=True)
class MaskFacts:
    """The masks of a split, as plain values.

    Attributes:
        masks: how many were looked at.
        ids: rows of (id, masks that hold it, pixels, pixels at the images' borders), of the ids that occur.
        labelled: images with a label.
        empty: of these, how many have a mask without any class.
        differing: of these, how many have other classes in their mask.
        common: pairs of image and class that label and mask agree on.
        misfits: classes whose id seldom occurs in the masks of their images, see `renumbered`.
        renumbered: rows of (class index, id) of these classes whose images hold another id instead.
        judged: classes with enough images to be judged so.
        colours: rows of (id, number) of classes that have several colours in the palettes of the masks.
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
        """Pixels of the ids first..last, or of these those at the images' borders."""
        return sum(row[3 if border else 2] for row in self.ids if first <= row[0] <= last)

    @property
    def foreground(self) -> int:
        """Pixels of classes."""
        return self.pixels(1, IGNORE - 1)


def look_at_mask(mask: np.ndarray, palette: np.ndarray | None = None) -> MaskLook:
    """Counts the ids of a mask.

    Args:
        mask: (H, W) uint8.
        palette: (256, 3) uint8 RGB; None of one without colours.
    """
    height, width = mask.shape
    inner = mask[1:-1, 1:-1] if min(height, width) > 2 else mask[:0]
    all_, inside = (np.bincount(part.ravel(), minlength=256) for part in (mask, inner))
    ids = np.flatnonzero(all_)
    pixels, border = all_[ids], (all_ - inside)[ids]
    packed = np.zeros(0, int) if palette is None else palette[ids].astype(int) @ (1 << 16, 1 << 8, 1)
    return MaskLook((height, width), *(tuple(values.tolist()) for values in (ids, pixels, border, packed)))


def mask_facts(looks: Sequence[MaskLook | None], labels: np.ndarray) -> MaskFacts:
    """Sums up the masks of a split.

    Args:
        looks: of N images; None where there is no mask, or no usable one.
        labels: (N, C) bool.
    """
    rows = [row for row, look in enumerate(looks) if look is not None]
    known_looks = [look for look in looks if look is not None]
    present, pixels, border = np.zeros((len(rows), 256), bool), np.zeros(256, int), np.zeros(256, int)
    for row, look in enumerate(known_looks):
        ids = list(look.ids)
        present[row, ids] = True
        pixels[ids] += look.pixels
        border[ids] += look.border
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
        colours=_several_colours(known_looks),
    )


def _several_colours(looks: Iterable[MaskLook]) -> list[list[int]]:
    """Rows of (id, number of colours), of the class ids with several colours in the palettes."""
    colours: dict[int, set[int]] = {}
    for look in looks:
        for number, colour in zip(look.ids, look.colours, strict=False):  # a gray mask has none
            colours.setdefault(number, set()).add(colour)
    return [[i, len(colours[i])] for i in sorted(colours) if 0 < i < IGNORE and len(colours[i]) > 1]


def renumbered(labels: np.ndarray, present: np.ndarray) -> tuple[list[list[int]], int, int]:
    """Classes whose id seldom occurs in the masks of their images, while another one nearly always does.

    The set of images that have the label is compared with the sets of images that hold each id, by the
    Jaccard index. So ids that begin at 0 instead of 1, or follow another order of the names, are found; noise
    in labels or masks is not taken for it.

    Args:
        labels: (N, C) bool.
        present: (N, 256) bool, whether a mask holds an id.

    Returns:
        Rows of (class index, id that fits instead); how many classes have an id that does not fit; and how
        many have enough images to be judged.
    """
    number = labels.shape[1]
    held = present[:, :IGNORE].astype(np.float32)
    common = labels.T.astype(np.float32) @ held
    images = labels.sum(0)
    union = images[:, None] + held.sum(0)[None] - common
    overlap = common / np.maximum(union, 1)
    own = overlap[np.arange(number), np.arange(number) + 1]
    best = overlap.argmax(1)
    # A class of all images says nothing: so is the background.
    judged = (images >= ENOUGH) & (images < len(labels))
    misfits = judged & (own < SELDOM)
    moved = np.flatnonzero(misfits & (overlap.max(1) >= NEARLY_ALWAYS))
    return [[int(c), int(best[c])] for c in moved], int(misfits.sum()), int(judged.sum())
