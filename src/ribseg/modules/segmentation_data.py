"""The loaders of a segmenter's training, by iterations."""

from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ribseg.checks import check_number
from ribseg.data.iterations import (
    CountedDataset,
    IterationDataset,
    IterationSampler,
    PaddedShard,
    only_item,
)
from ribseg.data.segmentation import SegmentationDataset
from ribseg.data.transforms import worker_init_fn
from ribseg.errors import ConfigError


class SegmentationDataModule(pl.LightningDataModule):
    """Endless training batches from the Trainer's step on, and whole images for validation.

    The Trainer must not replace the samplers (`use_distributed_sampler=False`).

    Args:
        train: images and masks, with a transform to crops of one size.
        val: whole images and masks, or None.
        batch_size: of one optimizer step, over all processes and accumulated batches.
        accumulate: forward passes per optimizer step; as the Trainer's `accumulate_grad_batches`.
        num_workers: of the loaders.
        seed: of order and augmentation.

    Raises:
        ConfigError: a number is out of range, or the batch does not divide among forward passes and
            processes.
    """

    def __init__(
        self,
        train: SegmentationDataset,
        val: SegmentationDataset | None = None,
        batch_size: int = 10,
        accumulate: int = 1,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("accumulate", accumulate, low=1, whole=True)
        self.train, self.val, self.batch_size, self.accumulate = train, val, batch_size, accumulate
        self.num_workers, self.seed = num_workers, seed
        self.check(1)

    def check(self, processes: int) -> None:
        """Raises a ConfigError if the batch does not divide."""
        if self.batch_size % (self.accumulate * processes):
            raise ConfigError(
                f"segmenter.batch_size={self.batch_size} counts all processes and accumulated batches "
                f"together, but does not divide by {processes} processes x segmenter.accumulate="
                f"{self.accumulate}; choose a multiple, so that the recipe's batch is kept"
            )

    def train_dataloader(self) -> DataLoader:
        """Batches of `image` (N, 3, S, S) and `mask` (N, S, S) without end, from the Trainer's step on."""
        trainer = self.trainer
        step, rank, processes = (
            (trainer.global_step, trainer.global_rank, trainer.world_size)
            if trainer is not None
            else (0, 0, 1)
        )
        self.check(processes)
        sampler = IterationSampler(
            len(self.train),
            self.batch_size // self.accumulate,
            self.seed,
            step * self.accumulate,
            rank,
            processes,
        )
        return self._loader(
            IterationDataset(self.train, self.seed),
            batch_sampler=sampler,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Whole images one by one; an empty list if there are none."""
        if self.val is None:
            return []
        trainer = self.trainer
        rank, processes = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        shard = PaddedShard(len(self.val), rank, processes)
        return self._loader(CountedDataset(self.val), sampler=shard, batch_size=1, collate_fn=only_item)

    def _loader(self, dataset: Any, **settings: Any) -> DataLoader:
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            worker_init_fn=partial(worker_init_fn, rank=0),
            pin_memory=torch.cuda.is_available(),
            **settings,
        )
