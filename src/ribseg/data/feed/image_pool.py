"""Decoded images of a data set in one memory-mapped file: each is decoded once, not once per draw."""

import io
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from rich.progress import track

from ribseg.data.base import BaseDataset
from ribseg.data.io.files import atomic_write
from ribseg.errors import DataError, RibsegError

PIXELS, INDEX = "pixels.bin", "index.npz"
CHANNELS = 3
IDLE = 600  # seconds
ADVICE = "Choose another place, or do without a pool (maps.pool_gib=0)."


class ImagePool:
    """Images as (H, W, 3) uint8 arrays, read where they lie; the processes of a machine share the pages.

    Args:
        folder: what `build_pool` filled.

    Raises:
        DataError: the folder holds no whole pool.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            with np.load(self.folder / INDEX, allow_pickle=False) as index:
                self._sizes = index["sizes"]
            self._ends = np.cumsum(_bytes_of(self._sizes))
            self._pixels = np.memmap(self.folder / PIXELS, np.uint8, mode="r")
            whole = len(self._pixels) == self._ends[-1]
        except (OSError, ValueError, KeyError, IndexError, EOFError) as error:
            raise DataError(
                f"{self.folder} is no pool of decoded images ({error}); delete it and run again"
            ) from error
        if not whole:
            raise DataError(
                f"the pool of decoded images {self.folder} should have {self._ends[-1]} bytes and has "
                f"{len(self._pixels)}; delete it and run again"
            )

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 of one image, read-only."""
        height, width = (int(side) for side in self._sizes[index])
        end = int(self._ends[index])
        return self._pixels[end - height * width * CHANNELS : end].reshape(height, width, CHANNELS)


def image_sizes(dataset: BaseDataset) -> np.ndarray:
    """(N, 2) int64 heights and widths of a data set's images; of files from their headers."""
    return np.asarray([dataset.size(image_id) for image_id in dataset.ids], dtype=np.int64).reshape(-1, 2)


def pool_bytes(sizes: np.ndarray) -> int:
    """Bytes of a pool of images of the given (N, 2) heights and widths: three for each pixel.

    >>> pool_bytes(np.array([[375, 500], [500, 375]]))
    1125000
    """
    return int(_bytes_of(sizes).sum())


def build_pool(
    folder: str | Path, dataset: BaseDataset, sizes: np.ndarray, threads: int = 4, progress: bool = False
) -> ImagePool:
    """Decodes all images of a data set into one file.

    The file gets its name, and the index is written, when all is there: a pool is whole or absent, also after
    a kill, and when two processes build it at once.

    Args:
        folder: is made if it is not there.
        dataset: its images are those of the pool, in the order of its ids.
        sizes: what `image_sizes` returns.
        threads: that decode; a few images per thread wait in memory, never all.
        progress: show a progress bar.

    Raises:
        DataError: an image cannot be decoded, or has another size than its header says.
        RibsegError: the folder cannot be written to.
    """
    folder = Path(folder)
    temporary = folder / f".{PIXELS}.{uuid.uuid4().hex}.tmp"
    images = _decoded(dataset, sizes, threads)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        try:
            with temporary.open("wb") as file:
                for image in track(images, "Decoding", len(dataset), disable=not progress):
                    file.write(image)
            temporary.replace(folder / PIXELS)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RibsegError(
            f"cannot write {pool_bytes(sizes)} bytes of decoded images to {folder}: "
            f"{error.strerror or error}. {ADVICE}"
        ) from error
    buffer = io.BytesIO()
    np.savez(buffer, sizes=sizes)
    atomic_write(folder / INDEX, buffer.getvalue())
    return ImagePool(folder)


def _remove_leftovers(folder: Path) -> None:
    # Of a process that was killed; one that is at work has written a moment ago.
    for path in folder.glob(f".{PIXELS}.*.tmp"):
        if time.time() - path.stat().st_mtime > IDLE:
            path.unlink(missing_ok=True)


def _decoded(dataset: BaseDataset, sizes: np.ndarray, threads: int) -> Iterator[bytes]:
    numbers = iter(range(len(dataset)))
    with ThreadPoolExecutor(threads, thread_name_prefix="pool") as workers:
        while batch := list(islice(numbers, 4 * threads)):
            yield from workers.map(lambda number: _pixels(dataset, number, sizes[number]), batch)


def _pixels(dataset: BaseDataset, number: int, size: Iterable[int]) -> bytes:
    image = dataset.image(dataset.ids[number])
    if image.shape != (*size, CHANNELS):
        raise DataError(
            f"the image {dataset.ids[number]} has the shape {image.shape}, its header said {tuple(size)}; "
            "was it changed since the run began?"
        )
    return image.tobytes()


def _bytes_of(sizes: np.ndarray) -> np.ndarray:
    return sizes.astype(np.int64).prod(1) * CHANNELS
