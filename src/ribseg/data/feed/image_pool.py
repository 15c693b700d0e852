"""A pool of decoded images in one memory-mapped file: each is decoded once, not once per draw."""

import time
from functools import partial
from pathlib import Path

import numpy as np

from ribseg.data.base import BaseDataset
from ribseg.errors import DataError
from ribseg.files import atomic_file
from ribseg.progress import track
from ribseg.workers import ordered_map

PIXELS, INDEX = "pixels.bin", "index.npz"
CHANNELS = 3
IDLE = 600  # seconds


class ImagePool:
    """Images as (H, W, 3) uint8 arrays, memory-mapped, so that the processes of a machine share them.

    Args:
        folder: filled by `build_pool`.

    Raises:
        DataError: the folder has no complete pool.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            with np.load(self.folder / INDEX, allow_pickle=False) as index:
                self._sizes = index["sizes"]
            self._ends = np.cumsum(_bytes_of(self._sizes))
            self._pixels = np.memmap(self.folder / PIXELS, np.uint8, mode="r")
            if len(self._pixels) != self._ends[-1]:
                raise ValueError(f"it should have {self._ends[-1]} bytes and has {len(self._pixels)}")
        except (OSError, ValueError, KeyError, IndexError, EOFError) as error:
            raise DataError(f"{self.folder}: no pool of images ({error}); delete it and run again") from error

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> np.ndarray:
        """One image: (H, W, 3) uint8, read-only."""
        height, width = (int(side) for side in self._sizes[index])
        end = int(self._ends[index])
        return self._pixels[end - height * width * CHANNELS : end].reshape(height, width, CHANNELS)


def image_sizes(dataset: BaseDataset) -> np.ndarray:
    """Heights and widths of a data set's images: (N, 2) int64; for files read from their headers."""
    return np.asarray([dataset.size(image_id) for image_id in dataset.ids], dtype=np.int64).reshape(-1, 2)


def pool_bytes(sizes: np.ndarray) -> int:
    """The size in bytes of a pool of images with (N, 2) heights and widths: three bytes per pixel.

    >>> pool_bytes(np.array([[375, 500], [500, 375]]))
    1125000
    """
    return int(_bytes_of(sizes).sum())


def build_pool(
    folder: str | Path,
    dataset: BaseDataset,
    sizes: np.ndarray,
    threads: int = 4,
    progress: bool | str = False,
) -> ImagePool:
    """Decodes all images of a data set into a pool, and returns it.

    The file is renamed, and the index written, when it is complete: a pool is complete or missing, also after
    a kill, or if two processes build it at once.

    Args:
        folder: is created if it does not exist.
        dataset: its images are those of the pool, in the order of its ids.
        sizes: from `image_sizes`.
        threads: for decoding; only a few images per thread are in memory.
        progress: how progress is shown, see `ribseg.progress.check_progress`.

    Raises:
        DataError: an image cannot be decoded, or its size differs from that in its header.
        RibsegError: the folder cannot be written to.
    """
    folder = Path(folder)
    images = ordered_map(partial(_pixels, dataset, sizes), range(len(dataset)), threads, threads=True)
    # Files of killed processes: a running one modifies its file all the time.
    for left in folder.glob(f".{PIXELS}.*.tmp"):
        if time.time() - left.stat().st_mtime > IDLE:
            left.unlink(missing_ok=True)
    advice = f"Choose a folder with {pool_bytes(sizes)} free bytes, or use no pool (maps.pool_gib=0)."
    with atomic_file(folder / PIXELS, advice) as file:
        for image in track(images, "Decoding", len(dataset), show=progress):
            file.write(image)
    with atomic_file(folder / INDEX) as file:
        np.savez(file, sizes=sizes)
    return ImagePool(folder)


def _pixels(dataset: BaseDataset, sizes: np.ndarray, number: int) -> bytes:
    image, size = dataset.image(dataset.ids[number]), tuple(sizes[number])
    if image.shape != (*size, CHANNELS):
        raise DataError(
            f"the image {dataset.ids[number]} has the shape {image.shape}, its header said {size}; "
            "was it changed since the run began?"
        )
    return image.tobytes()


def _bytes_of(sizes: np.ndarray) -> np.ndarray:
    return sizes.astype(np.int64).prod(1) * CHANNELS
