"""Lightning callbacks of the map stages: writing maps as they are made, and a fixed number of threads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter, Callback

from ribseg.data.maps import save_maps
from ribseg.modules.localization import Prediction


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


def map_path(folder: str | Path, image_id: str) -> Path:
    """Where the maps of an image lie in a stage's folder."""
    return Path(folder) / "maps" / f"{image_id}.npz"


def read_records(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Image id -> record, from all processes; the torn last line of a killed process is passed over."""
    records: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(folder).glob("records-*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # empty, or torn: then its image has no map file either, and is done again
            records[record["id"]] = record
    return records
