"""Lightning callbacks: writers of maps and masks, moving average, and number of threads."""

import dataclasses
import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter, Callback, EMAWeightAveraging

from ribseg.data.io.maps import map_path, save_maps
from ribseg.data.io.masks import write_mask
from ribseg.errors import RibsegError
from ribseg.models.inference import most_probable
from ribseg.modules.localization import Prediction
from ribseg.modules.mask_prediction import MaskPrediction
from ribseg.workers import process_pool, rank, threads_per_process, why_broken


class MapWriter(BasePredictionWriter):
    """Writes the maps and record of each image immediately, so that a killed run loses at most one image.

    The record is appended before the map file, which marks the image as done, so every finished image has a
    record. Images that are computed twice have two equal records.

    Args:
        folder: for `maps/<image id>.npz` and `records-<part><process>.jsonl`.
        full: write full-size maps, too (for exact evaluation and CRF; several times the disk space).
        part: of the images; other runs may write other parts into the same folder at the same time.
        classes: names of the C classes, which are written with the maps; None if unknown.
    """

    def __init__(
        self, folder: str | Path, full: bool = True, part: str = "", classes: Sequence[str] | None = None
    ) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.full, self.part, self.classes = Path(folder), full, part, classes

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Prediction,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Appends the record, then writes the map file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"records-{self.part}{rank()}.jsonl").open("a") as file:
            # The leading newline ends a partial line of a killed process.
            file.write("\n" + json.dumps(prediction.record) + "\n")
        maps = prediction.maps
        kept = maps if self.full else dataclasses.replace(maps, full=None)
        if self.classes is not None:
            kept = dataclasses.replace(kept, names=tuple(self.classes[c] for c in maps.classes.tolist()))
        save_maps(map_path(self.folder, prediction.image_id), kept)


class MaskWriter(BasePredictionWriter):
    """Writes each image's mask as a palette PNG; dense CRFs run in worker processes.

    Args:
        folder: for `<image id>.png`.
        palette: (256, 3) uint8 RGB; None for VOC's.
        crf: settings of `dense_crf` for predictions without labels.
        workers: number of processes for the CRF.
    """

    def __init__(
        self,
        folder: str | Path,
        palette: np.ndarray | None = None,
        crf: Mapping[str, Any] | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.palette, self.crf, self.workers = Path(folder), palette, crf, workers
        self._pool: ProcessPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: MaskPrediction,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Writes the mask, or submits its CRF to a process; waits while too many are pending."""
        target = self.folder / f"{prediction.image_id}.png"
        if prediction.labels is not None:
            write_mask(target, prediction.labels, self.palette)
            return
        if self._pool is None:
            self._pool = process_pool(self.workers)
        self._pending.append(self._pool.submit(refine_and_write, target, prediction, self.crf, self.palette))
        if len(self._pending) > 2 * self.workers:
            self._wait()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Waits for the last masks."""
        while self._pending:
            self._wait()

    def _wait(self) -> None:
        """Waits for the first mask of those that are pending."""
        assert self._pool is not None
        try:
            self._pending.popleft().result()
        except BrokenProcessPool as error:
            raise RibsegError(why_broken(self._pool)) from error

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stops the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def refine_and_write(
    target: Path, prediction: MaskPrediction, crf: Mapping[str, Any] | None, palette: np.ndarray | None
) -> None:
    """Applies the CRF and writes the mask of one image; runs in a worker process."""
    assert prediction.probabilities is not None  # the labels are None
    write_mask(target, most_probable(prediction.image, prediction.probabilities, crf), palette)


class MovingAverage(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, stored on the model's device.

    Lightning's default is the device before the model is moved, which requires a copy in every step.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Sets the device before the first step."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)


class Threads(Callback):
    """Sets the number of torch's threads in each process.

    The order of summation depends on it: with a fixed number the maps are equal to the bit, for any number of
    processes.

    Args:
        number: of threads; None for `threads_per_process()`.
    """

    def __init__(self, number: int | None = None) -> None:
        self.number = number or threads_per_process()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Sets the number of threads."""
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.number)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restores the number of threads for the following stages."""
        torch.set_num_threads(self.before)
