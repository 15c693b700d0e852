"""Lightning callbacks: writing maps and masks as they are made, and a fixed number of threads."""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter, Callback, EMAWeightAveraging

from ribseg.data.io.maps import map_path, save_maps
from ribseg.data.io.masks import write_mask
from ribseg.methods.inference import most_probable
from ribseg.modules.localization import Prediction
from ribseg.modules.mask_prediction import MaskPrediction
from ribseg.workers import process_pool


class MapWriter(BasePredictionWriter):
    """Writes each image's maps and its record at once, so that a killed run loses one image at most.

    The record is appended before the map file appears: an image counts as done by its map file, so every
    finished image has a record. Images that are done twice have two equal records.

    Args:
        folder: gets `maps/<image id>.npz` and `records-<process>.jsonl`.
        full: keep the full-size maps, too (exact evaluation and CRF; several times the space).
    """

    def __init__(self, folder: str | Path, full: bool = True) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.full = Path(folder), full

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Prediction,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Appends the record, then puts the map file in its place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"records-{trainer.global_rank}.jsonl").open("a") as file:
            # The newline in front closes the line that a killed process may have left torn.
            file.write("\n" + json.dumps(prediction.record) + "\n")
        maps = prediction.maps
        kept = maps if self.full else type(maps)(maps.classes, maps.strided, None, maps.size)
        save_maps(map_path(self.folder, prediction.image_id), kept)


class MaskWriter(BasePredictionWriter):
    """Writes each image's mask as a palette PNG; dense CRFs run in processes beside the network.

    Args:
        folder: gets `<image id>.png`.
        palette: (256, 3) uint8 RGB; None for VOC's.
        crf: settings of `dense_crf` for predictions that come without labels.
        workers: processes for them.
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
        self._open: deque[Future[None]] = deque()

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: MaskPrediction,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the mask, or hands its CRF to a process; waits while too many are under way."""
        target = self.folder / f"{prediction.image_id}.png"
        if prediction.labels is not None:
            write_mask(target, prediction.labels, self.palette)
            return
        if self._pool is None:
            self._pool = process_pool(self.workers)
        self._open.append(self._pool.submit(refine_and_write, target, prediction, self.crf, self.palette))
        if len(self._open) > 2 * self.workers:
            self._open.popleft().result()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Waits for the last masks."""
        while self._open:
            self._open.popleft().result()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def refine_and_write(
    target: Path, prediction: MaskPrediction, crf: Mapping[str, Any] | None, palette: np.ndarray | None
) -> None:
    """Writes the mask of one image after its CRF, in another process."""
    assert prediction.probabilities is not None  # else there would be labels
    write_mask(target, most_probable(prediction.image, prediction.probabilities, crf), palette)


class MovingAverage(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, kept where the model is.

    By itself it is kept where the model was before it went to its device, which costs a copy every step.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before the first step."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)


class Threads(Callback):
    """Sets torch's threads while maps are made, in each process after it was launched.

    Sums in another order differ in the last digit; with the same number of threads the maps have the same
    bytes, whatever the number of processes.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before anything is computed."""
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.number)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Back to what it was, for the stages that follow."""
        torch.set_num_threads(self.before)
