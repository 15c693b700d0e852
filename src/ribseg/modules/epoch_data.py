"""Loaders for training by epochs whose samples depend on neither workers nor processes."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from ribseg.data.augment.seeding import (
    is_seeded,
    rank_and_processes,
    share_of,
    training_loader,
    validation_loader,
)


class EpochDataModule(pl.LightningDataModule):
    """Loaders for training by epochs that are a function of (seed, epoch), see `ribseg.data.augment.seeding`.

    With them neither `num_workers` nor, for a given `batch_size`, the number of processes changes a sample. A
    Trainer may have `use_distributed_sampler` either way.

    Attributes:
        batch_size: over all processes together; each gets its share.
        num_workers: of each loader.
        seed: of order and augmentation.
        setting: the name of `batch_size`, for messages.
    """

    batch_size: int
    num_workers: int
    seed: int
    setting: str = "batch_size"

    def training_batches(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        """Batches of a data set with random augmentation, shuffled, from the Trainer's epoch on.

        Args:
            dataset: of items that `default_collate` can stack; see `SeededDataset` for what may be random.

        Raises:
            ConfigError: the batch does not divide among the processes.
        """
        rank, processes = self._check_share()
        # What Lightning tells the sampler, too, but only after workers have begun to load.
        loop = None if self.trainer is None else self.trainer.fit_loop
        epoch = 0 if loop is None else loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        return training_loader(dataset, self.batch_size, self.seed, self.num_workers, epoch, rank, processes)

    def validation_batches(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        """Batches of a data set in its order; each image once, whatever the number of processes.

        Args:
            dataset: of items that `default_collate` can stack.

        Raises:
            ConfigError: the batch does not divide among the processes.
        """
        rank, processes = self._check_share()
        return validation_loader(dataset, self.batch_size, self.num_workers, rank, processes)

    def _check_share(self) -> tuple[int, int]:
        """Rank of this process and number of processes, among which the batch divides."""
        rank, processes = rank_of(self.trainer)
        share_of(self.batch_size, processes, self.setting)
        return rank, processes


def rank_of(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Rank of this process and number of processes."""
    return rank_and_processes() if trainer is None else (trainer.global_rank, trainer.world_size)


class SamplesCheck(pl.Callback):
    """Warns before the training if a data module of one's own leaves its samples to chance."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the training batches."""
        loader = trainer.train_dataloader
        if not (isinstance(loader, DataLoader) and is_seeded(loader)):
            rank_zero_warn(
                "train_dataloader returned other batches than those of `training_batches(dataset)`: what they"
                " hold may depend on data.num_workers and on the number of processes, which the store does "
                "not tell apart"
            )
