"""Samplers for training by iterations: a batch is a function of the number of its iteration.

So a resumed training gets the same batches as an uninterrupted one, and neither the number of processes nor
of workers changes them; see `seeding` for training by epochs.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from torch.utils.data import Dataset, Sampler

from ribseg.data.augment.seeding import Place, shuffled
from ribseg.data.augment.segmentation import SegmentationDataset
from ribseg.errors import ConfigError
from ribseg.types import ImageItem, MaskSample

T = TypeVar("T")


class IterationSampler(Sampler[list[Place]]):
    """Endless batches for a `SeededDataset`; each epoch is shuffled anew, and batches cross its end.

    Args:
        images: number of images.
        batch_size: of one forward pass, over all processes.
        seed: of the order.
        start: number of the first batch, counted from the beginning of the training.
        rank: of this process.
        processes: number of processes.

    Raises:
        ConfigError: the batch size is not a multiple of the number of processes, or there is no image.

    >>> batches = iter(IterationSampler(images=3, batch_size=2))
    >>> later = iter(IterationSampler(images=3, batch_size=2, start=1))
    >>> next(batches) != next(batches) == next(later)
    True
    """

    def __init__(
        self, images: int, batch_size: int, seed: int = 0, start: int = 0, rank: int = 0, processes: int = 1
    ) -> None:
        if images < 1 or batch_size < 1 or batch_size % processes:
            raise ConfigError(
                f"expected images, and a batch_size that is a multiple of the {processes} processes; got "
                f"{images} images and batch_size={batch_size}"
            )
        self.images, self.batch_size, self.seed, self.start = images, batch_size, seed, start
        self.rank, self.processes = rank, processes
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __iter__(self) -> Iterator[list[Place]]:
        share = self.batch_size // self.processes
        begin = self.start * self.batch_size + self.rank * share
        while True:
            yield [self._place(position) for position in range(begin, begin + share)]
            begin += self.batch_size

    def _place(self, position: int) -> Place:
        epoch, place = divmod(position, self.images)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, shuffled(self.seed, epoch, self.images)
        return int(self._order[place]), epoch


class WholeImages(Dataset[ImageItem]):
    """Untransformed images, for predictions.

    Args:
        ids: of the images.
        image: image id -> (H, W, 3) uint8.
    """

    def __init__(self, ids: Iterable[str], image: Callable[[str], np.ndarray]) -> None:
        self.ids, self.image = list(ids), image

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> ImageItem:
        return ImageItem(self.ids[index], self.image(self.ids[index]))


class PaddedShard(Sampler[int]):
    """The images of one process for validation; all processes get the same number, by marked padding.

    Under DDP unequal numbers of steps would hang, and repeated images would count twice. So indices from
    `images` on are padding: `index % images` is the image, and it does not count.

    >>> [list(PaddedShard(5, rank, 2)) for rank in range(2)]
    [[0, 2, 4], [1, 3, 5]]
    """

    def __init__(self, images: int, rank: int = 0, processes: int = 1) -> None:
        self.images, self.rank, self.processes = images, rank, processes

    def __len__(self) -> int:
        return -(-self.images // self.processes)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self) * self.processes, self.processes))


class CountedDataset(Dataset[MaskSample]):
    """A data set for the indices of `PaddedShard`; its items have `counts`, False for padding."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> MaskSample:
        number = len(self.dataset)
        return self.dataset[index % number]._replace(counts=index < number)


def only_item(items: list[T]) -> T:
    """The item of a batch of one; a module-level function, so that it can be pickled for workers."""
    return items[0]
