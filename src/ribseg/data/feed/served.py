"""Several splits as one collection of images."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ribseg.data.ids import Ids
from ribseg.data.voc import VOCFolder


class ServedImages(Mapping[str, VOCFolder]):
    """Image id -> the first of some splits that holds it, without an entry per image.

    Args:
        folders: at least one; an image of several is served by the first of them.

    Attributes:
        ids: of all images, each once, in the order of the splits and of their lists.
    """

    def __init__(self, folders: Sequence[VOCFolder]) -> None:
        first, *others = self._folders = tuple(folders)
        self._rows = [np.arange(len(first))]  # of each split, those that no split before it has
        for number, folder in enumerate(others, 1):
            before = self._folders[:number]
            new = [row for row, i in enumerate(folder.ids) if not any(i in other.ids for other in before)]
            self._rows.append(np.array(new, dtype=np.int64))
        self.ids = first.ids if not others else Ids(self._all())

    def __getitem__(self, image_id: str) -> VOCFolder:
        for folder in self._folders:
            if image_id in folder.ids:
                return folder
        raise KeyError(image_id)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.ids

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def class_counts(self) -> np.ndarray:
        """How many labels each image has: (N,) int64, in the order of `ids`."""
        counts = [folder.labels[rows].sum(1) for folder, rows in zip(self._folders, self._rows, strict=True)]
        return np.concatenate(counts)

    def _all(self) -> Iterator[str]:
        for folder, rows in zip(self._folders, self._rows, strict=True):
            yield from (folder.ids[row] for row in rows)
