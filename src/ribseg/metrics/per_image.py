"""Counts of single images: for scores of each image, and for paired comparisons of runs."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ribseg.errors import DataError, reason
from ribseg.files import atomic_write

COLUMNS = 5  # image, label, true positives, predicted pixels, true pixels


@dataclass(frozen=True)
class PerImageCounts:
    """The label counts of each image of a split, for each source of maps.

    Attributes:
        ids: of the N images.
        num_labels: C + 1, with background.
        rows: source -> (M, 5) int64, one row per image and label that occurs in mask or prediction: index of
            the image, label, true positives, predicted pixels, true pixels.
    """

    ids: tuple[str, ...]
    num_labels: int
    rows: Mapping[str, np.ndarray]

    @classmethod
    def from_counts(cls, ids: Sequence[str], counts: Mapping[str, Tensor]) -> "PerImageCounts":
        """The counts of N images.

        Args:
            ids: of the images.
            counts: source -> (N, 3, C+1) int64, see `ribseg.metrics.label_counts`.
        """
        rows = {}
        for source, values in counts.items():
            array = values.numpy()
            image, label = np.nonzero(array.any(1))
            rows[source] = np.column_stack([image, label, array[image, :, label]]).astype(np.int64)
        return cls(tuple(ids), next(iter(counts.values())).shape[2], rows)

    def of(self, source: str, ids: Sequence[str] | None = None) -> Tensor:
        """The (N, 3, C+1) int64 counts of a source.

        Args:
            source: one of `rows`.
            ids: images, in this order; None for all.
        """
        counts = np.zeros((len(self.ids), 3, self.num_labels), dtype=np.int64)
        image, label, *values = self.rows[source].T
        counts[image, :, label] = np.stack(values, 1)
        return torch.from_numpy(counts if ids is None else counts[self._places(ids)])

    def true_pixels(self, ids: Sequence[str]) -> np.ndarray:
        """The (N, C+1) int64 number of scored pixels of each label in the masks of some images."""
        return self.of(next(iter(self.rows)), ids)[:, 2].numpy()

    def iou(self, source: str, ids: Sequence[str] | None = None) -> np.ndarray:
        """The (N,) float64 IoU of each image: mean over the labels, background included, that it has.

        Labels count that occur in the image's mask or in its prediction; NaN where nothing is scored.

        Args:
            source: one of `rows`.
            ids: images, in this order; None for all.
        """
        image, _, hit, predicted, true = self.rows[source].T
        each = hit / np.maximum(predicted + true - hit, 1)
        number = np.bincount(image, minlength=len(self.ids))
        with np.errstate(invalid="ignore"):
            iou = np.bincount(image, each, minlength=len(self.ids)) / number
        return iou if ids is None else iou[self._places(ids)]

    def _places(self, ids: Sequence[str]) -> list[int]:
        place = {image_id: number for number, image_id in enumerate(self.ids)}
        return [place[image_id] for image_id in ids]

    def save(self, path: str | Path) -> None:
        """Writes an .npz file atomically."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"rows/{source}": values for source, values in self.rows.items()}
        arrays |= {"ids": np.asarray(self.ids, dtype=np.str_), "num_labels": np.asarray(self.num_labels)}
        np.savez_compressed(buffer, **arrays)
        atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "PerImageCounts":
        """Reads a file of `save`.

        Raises:
            DataError: it is missing, broken, or holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                rows = {name[5:]: file[name] for name in file.files if name.startswith("rows/")}
                ids, labels = file["ids"], int(file["num_labels"])
        except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"the scores of single images in {path} cannot be read: {reason(error)}. rerun=[evaluate] "
                "writes them again"
            ) from error
        if any(values.ndim != 2 or values.shape[1] != COLUMNS for values in rows.values()):
            raise DataError(f"{path} holds no scores of single images; rerun=[evaluate] writes them again")
        return cls(tuple(map(str, ids)), labels, rows)
