"""Data loaders of images with masks: by epochs (affinities) and by iterations (segmenters)."""

import pytorch_lightning as pl
from torch.utils.data import DataLoader, DistributedSampler

from ribseg.checks import check_number
from ribseg.data.augment.seeding import TrainingBatches, batch_loader, loader_settings
from ribseg.data.augment.segmentation import CountedDataset, SegmentationDataset
from ribseg.data.feed.views import only_item
from ribseg.errors import ConfigError
from ribseg.modules.epoch_data import EpochDataModule, rank_of


class CropDataModule(EpochDataModule):
    """Batches of `image` (N, 3, S, S) and `mask` (N, S, S) for training by epochs.

    Args:
        train: images and masks, with a random transform to crops of one size.
        val: the same with a deterministic transform.
        batch_size: per step, total over all processes.
        num_workers: of the loaders.
        seed: of order and augmentation.
        setting: the name of `batch_size`, for messages.
    """

    def __init__(
        self,
        train: SegmentationDataset,
        val: SegmentationDataset,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        setting: str = "batch_size",
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.batch_size, self.num_workers, self.seed, self.setting = batch_size, num_workers, seed, setting

    def train_dataloader(self) -> DataLoader:
        """See `training_batches`."""
        return self.training_batches(self.train)

    def val_dataloader(self) -> DataLoader:
        """See `validation_batches`."""
        return self.validation_batches(self.val)


class SegmentationDataModule(pl.LightningDataModule):
    """Infinite training batches starting at the Trainer's step, and whole images for validation.

    Args:
        train: images and masks, with a transform to crops of one size.
        val: whole images and masks, or None.
        batch_size: per optimizer step, total over all processes and accumulated batches.
        accumulate: forward passes per optimizer step; equal to the Trainer's `accumulate_grad_batches`.
        num_workers: of the loaders.
        seed: of order and augmentation.

    Raises:
        ConfigError: a number is out of range, or batch_size is not divisible by accumulate * processes.
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
        """Raises a ConfigError unless batch_size is divisible by accumulate * processes."""
        if self.batch_size % (self.accumulate * processes):
            raise ConfigError(
                f"segmenter.batch_size={self.batch_size} counts all processes and accumulated batches "
                f"together, but does not divide by {processes} processes x segmenter.accumulate="
                f"{self.accumulate}; choose a multiple to keep the recipe's batch size"
            )

    def train_dataloader(self) -> DataLoader:
        """Infinite batches of `image` (N, 3, S, S) and `mask` (N, S, S), starting at the Trainer's step."""
        rank, processes = rank_of(self.trainer)
        step = 0 if self.trainer is None else self.trainer.global_step
        self.check(processes)
        size, first = self.batch_size // self.accumulate, step * self.accumulate
        batches = TrainingBatches(len(self.train), size, self.seed, 0, rank, processes, first)
        return batch_loader(self.train, batches, self.num_workers, self.seed)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Whole images one by one; an empty list without validation data."""
        if self.val is None:
            return []
        rank, processes = rank_of(self.trainer)
        images = CountedDataset(self.val, processes)
        share: DistributedSampler[int] = DistributedSampler(images, processes, rank, shuffle=False)
        return DataLoader(images, 1, sampler=share, collate_fn=only_item, **loader_settings(self.num_workers))
