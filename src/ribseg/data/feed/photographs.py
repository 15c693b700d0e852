"""Reference images from a folder of unlabelled photographs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ribseg.data.base import BaseDataset
from ribseg.data.io.images import read_image
from ribseg.errors import DataError
from ribseg.files import IMAGE_ENDINGS, scan_folder


class LabelledPhotographs(BaseDataset):
    """The photographs of a folder, with classes that a classifier predicts as labels.

    Args:
        folder: of the images; their names without extension are their ids.
        find: (H, W, 3) uint8 -> class indices.
        number: C.

    Raises:
        DataError: the folder has no image, or one cannot be read.
    """

    def __init__(self, folder: str | Path, find: Callable[[np.ndarray], list[int]], number: int) -> None:
        self.folder = Path(folder)
        self.files = scan_folder(self.folder, IMAGE_ENDINGS)
        if not self.files:
            raise DataError(f"the folder {folder} holds no images ({', '.join(IMAGE_ENDINGS)})")
        self.ids = sorted(self.files)
        self.labels = np.zeros((len(self.ids), number), bool)
        for row, image_id in enumerate(self.ids):
            self.labels[row, find(self.image(image_id))] = True

    def image(self, image_id: str) -> np.ndarray:
        """See `ImageDataset`."""
        return read_image(self.folder / self.files[image_id])
