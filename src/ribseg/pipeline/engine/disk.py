"""What the stages of a run will write, predicted before the first of them starts, and whether there is room.

The predictions come from the sizes of a sample of the images, from how many classes they have, and from how
many weights the networks have; nothing is decoded and no network is run. Tables and logs count as nothing.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import nn

from ribseg.data.base import BaseDataset
from ribseg.data.feed.image_pool import CHANNELS
from ribseg.errors import DiskSpaceError
from ribseg.methods.cam import STRIDE

if TYPE_CHECKING:
    from ribseg.pipeline.engine.context import Context
    from ribseg.pipeline.stages.maps import Stage

SAMPLE = 200  # images whose headers are read
BLOCK = 4096  # file systems give room in blocks of this many bytes
# Bytes per class and pixel of maps: half precision, times what compression leaves. Measured on maps of
# photographs (CAM, RIB, walked): .68 to .74 at full size, .78 to .85 at stride 4.
FULL, STRIDED = 2 * 0.72, 2 * 0.82
MAP_HEADERS, RECORD = 700, 130  # bytes of a map file besides its maps, and of an image's record
# Of a palette PNG: header and palette, and bytes per pixel. Measured per pixel: VOC's masks .019; made from
# maps of photographs: masks .011 to .014, after the CRF .023 to .030, confident labels .031 to .033.
MASK_HEADERS, MASK_PIXEL = 900, 0.035
SHOWN = 3  # stages that are named in the line before the start
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))


class Weights(NamedTuple):
    """The numbers of a network in bytes.

    Attributes:
        all: what its state holds.
        learning: parameters that learn, for which SGD's momentum is kept beside them.
    """

    all: int
    learning: int

    @property
    def checkpoint(self) -> int:
        """A checkpoint from which the training goes on."""
        return self.all + self.learning


class ImageSizes:
    """How large the images are, as a sample of them says; opened when first asked for.

    Args:
        images: all that maps and masks are made of.
    """

    def __init__(self, images: Mapping[str, BaseDataset]) -> None:
        self.images = images

    def map_files(self, full: bool) -> float:
        """Bytes of the localization maps of all images; `full`: with those at full size."""
        counts, pixels, strided = self._class_counts, self._sample[:, 0], self._sample[:, 1]
        packed = np.average(STRIDED * strided + full * FULL * pixels, weights=self._sample[:, 2])
        return float(likely_room(MAP_HEADERS + counts * packed).sum()) + RECORD * len(counts)

    def mask_files(self, number: int) -> float:
        """Bytes of so many masks."""
        return number * float(likely_room(MASK_HEADERS + MASK_PIXEL * self._sample[:, 0]).mean())

    def decoded(self, number: int) -> float:
        """Bytes of so many images as pixels."""
        return number * float(self._sample[:, 0].mean()) * CHANNELS

    @cached_property
    def _class_counts(self) -> np.ndarray:
        """(N,): how many labels each image has."""
        rows = ((folder, folder.index(image_id)) for image_id, folder in self.images.items())
        return np.array([folder.labels[row].sum() for folder, row in rows])

    @cached_property
    def _sample(self) -> np.ndarray:
        """(S, 3): pixels at full size, at stride 4, and the weight in a mean over all maps; spread evenly."""
        counts = self._class_counts
        rows = np.unique(np.linspace(0, len(counts) - 1, min(SAMPLE, len(counts))).astype(int))
        ids = list(self.images)
        sizes = [self.images[ids[row]].size(ids[row]) for row in rows]
        small = [-(-height // STRIDE) * -(-width // STRIDE) for height, width in sizes]
        # An image counts as often as it has maps; a little more, so that the weights are never all zero.
        return np.stack([np.prod(sizes, axis=1), small, counts[rows] + 1e-6], axis=1).astype(float)


def weights_of(network: nn.Module) -> Weights:
    """Counts a network's weights."""
    state = (value for value in network.state_dict().values() if hasattr(value, "nbytes"))
    learning = (weight for weight in network.parameters() if weight.requires_grad)
    return Weights(*(sum(tensor.nbytes for tensor in tensors) for tensors in (state, learning)))


def likely_room(sizes: np.ndarray) -> np.ndarray:
    """Room that files take whose sizes in bytes are known roughly: half of the last block is empty."""
    return np.maximum(sizes + BLOCK / 2, BLOCK)


def occupied(folder: str | Path) -> int:
    """Room that the files below a folder take, in bytes; 0 if there is none."""
    files = (file for file in Path(folder).rglob("*") if file.is_file())
    return sum(-(-file.stat().st_size // BLOCK) * BLOCK for file in files)


def predicted(context: "Context", stages: Iterable["Stage"]) -> dict[str, float]:
    """Stage -> bytes that it will still write; only of those that the run makes and the store lacks."""
    sizes, found = ImageSizes(context.data.folders), {}
    for stage in stages:
        if context.will_run(stage.name):
            whole = stage.disk(context, sizes)
            there = occupied(context.artefacts[stage.name].folder)  # of a run that was interrupted
            if whole > there:
                found[stage.name] = whole - there
    return found


def check_space(context: "Context", stages: Sequence["Stage"]) -> None:
    """Says what the stages will write, and stops the run where that does not fit.

    Raises:
        DiskSpaceError: the store's file system has less room than that and `store.margin` on top.
    """
    margin = context.cfg.store.margin
    sizes = predicted(context, stages)
    needed = sum(sizes.values())
    if needed == 0:
        return
    free = shutil.disk_usage(context.store.root).free
    parts, root = f"{in_words(needed)} to be written ({largest(sizes)})", context.store.root
    context.console.print(f"[bold]disk[/]: {parts}, {in_words(free)} free in {root}")
    if margin is None or needed * (1 + margin) <= free:
        return
    maps = "keep no full-size maps (maps.full=false), " if context.cfg.maps.full else ""
    raise DiskSpaceError(
        f"the run would fill the disk: {parts}; expected {in_words(needed * (1 + margin))} free in {root} "
        f"(store.margin={margin:g}), found {in_words(free)}. Make room, choose another place (store.root=DIR)"
        f", {maps}or start all the same (store.margin=null)"
    )


def largest(sizes: dict[str, float]) -> str:
    """The stages that write most, by name, and the sum of the others."""
    order = sorted(sizes, key=lambda name: -sizes[name])
    parts = [f"{name} {in_words(sizes[name])}" for name in order[:SHOWN]]
    rest = sum(sizes[name] for name in order[SHOWN:])
    return ", ".join([*parts, *([f"others {in_words(rest)}"] if rest else [])])


def in_words(size: float) -> str:
    """A number of bytes for people.

    >>> in_words(41_340_000_000), in_words(999_700_000), in_words(0)
    ('41.3 GB', '1000 MB', '0 bytes')
    """
    unit, name = next((part for part in UNITS if size >= part[0]), UNITS[-1])
    value = size / unit
    return f"{value:.0f} {name}" if value >= 100 else f"{value:.3g} {name}"
