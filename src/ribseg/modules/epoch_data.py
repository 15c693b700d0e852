"""Data loaders for training by epochs, independent of the number of workers and processes."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from ribseg.data.augment.seeding import TrainingBatches, ValidationBatches, batch_loader, is_seeded, share_of
from ribseg.workers import process_count, rank


class EpochDataModule(pl.LightningDataModule):
    """Base class with loaders determined by (seed, epoch), see `ribseg.data.augment.seeding`.

    Samples depend neither on `num_workers` nor, for a given `batch_size`, on the number of processes. The
    Trainer's `use_distributed_sampler` has no effect.

    Attributes:
        batch_size: total over all processes.
        num_workers: of each loader.
        seed: of order and augmentation.
        setting: the name of `batch_size`, for messages.
    """

    batch_size: int
    num_workers: int
    seed: int
    setting: str = "batch_size"

    def training_batches(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        """Shuffled batches of a data set with random augmentation, starting at the Trainer's epoch.

        Args:
            dataset: of items for `default_collate`; see `SeededDataset` for random augmentation.

        Raises:
            ConfigError: batch_size is not divisible by the number of processes.
        """
        # Lightning also sets the sampler's epoch, but only after workers have started to load.
        loop = None if self.trainer is None else self.trainer.fit_loop
        epoch = 0 if loop is None else loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        shape = (len(dataset), self.batch_size)  # type: ignore[arg-type]
        batches = TrainingBatches(*shape, self.seed, epoch, *self._check_share())
        return batch_loader(dataset, batches, self.num_workers, self.seed)

    def validation_batches(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        """Batches of a data set in its order, with each image once for any number of processes.

        Args:
            dataset: of items for `default_collate`; random ones are the same in every pass.

        Raises:
            ConfigError: batch_size is not divisible by the number of processes.
        """
        shape = (len(dataset), self.batch_size)  # type: ignore[arg-type]
        return batch_loader(dataset, ValidationBatches(*shape, *self._check_share()), self.num_workers)

    def _check_share(self) -> tuple[int, int]:
        """Rank and number of processes; raises a ConfigError if batch_size is not divisible by the latter."""
        rank, processes = rank_of(self.trainer)
        share_of(self.batch_size, processes, self.setting)
        return rank, processes


def rank_of(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if trainer is not None:
        return trainer.global_rank, trainer.world_size
    processes = process_count()
    return (rank() if processes > 1 else 0), processes


class SamplesCheck(pl.Callback):
    """Warns if the training batches of a custom data module are not reproducible."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks the training loader."""
        loader = trainer.train_dataloader
        if not (isinstance(loader, DataLoader) and is_seeded(loader)):
            rank_zero_warn(
                "train_dataloader did not return the loader of `training_batches(dataset)`: its samples may "
                "depend on data.num_workers and on the number of processes, which are not part of the "
                "store's digests"
            )
