r"""A data set of one's own: each split is one file of arrays, `<split>.npz`.

With this folder on PYTHONPATH:

    python train.py experiment=rib_folder data=own \
        data.dataset._target_=own_dataset.Arrays +data.dataset.folder=PATH

The file holds `images` (N, H, W, 3) uint8, `labels` (N, C) bool, `classes` (C,) names, and `masks` (N, H, W)
uint8: 0 background, c + 1 class c, 255 ignore.
"""

import hashlib
from pathlib import Path

import numpy as np

from ribseg.data import BaseDataset


class Arrays(BaseDataset):
    """Images, image-level labels and masks of one split.

    Args:
        folder: of the files.
        split: name of the file.
    """

    def __init__(self, folder: str, split: str) -> None:
        self._file = Path(folder) / f"{split}.npz"
        with np.load(self._file, allow_pickle=False) as arrays:
            self._images, self._masks = arrays["images"], arrays["masks"]
            self.labels, self.classes = arrays["labels"], tuple(arrays["classes"].tolist())
        self.ids = [f"{split}_{number:05d}" for number in range(len(self._images))]

    def image(self, image_id: str) -> np.ndarray:
        """(H, W, 3) uint8."""
        return self._images[self.index(image_id)]

    def has_mask(self, image_id: str) -> bool:
        """Every image has one."""
        return True

    def mask(self, image_id: str) -> np.ndarray:
        """(H, W) uint8."""
        return self._masks[self.index(image_id)]

    def fingerprint(self, masks: bool = False) -> str:
        """The file's checksum: results are kept as long as it stays the same."""
        return hashlib.sha256(self._file.read_bytes()).hexdigest()
