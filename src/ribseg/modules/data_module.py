"""The LightningDataModule of all stages."""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import torch
from torch.utils.data import DataLoader

from ribseg.checks import check_number, check_numbers
from ribseg.data.augment.transforms import eval_transform, train_transform
from ribseg.data.base import ImageDataset
from ribseg.data.check.dataset import OnError
from ribseg.data.feed.image_pool import ImagePool
from ribseg.data.feed.references import ReferenceBatches
from ribseg.data.feed.sampler import ReferenceSampler
from ribseg.data.feed.views import SCALES, ViewsDataset, check_scales, only_item
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD, Channels, three
from ribseg.data.splits import DataSplits
from ribseg.modules.epoch_data import EpochDataModule, rank_of
from ribseg.workers import cores


class WSSSDataModule(DataSplits, EpochDataModule):
    """Data of weakly supervised semantic segmentation: images and image-level labels.

    Data sets are opened on first use, so every attribute works with or without a Trainer.

    Args:
        root: see `VOCFolder`; None with `dataset`.
        train_split: see `DataSplits`.
        eval_splits: see `DataSplits`.
        pseudo_split: see `DataSplits`.
        labels: see `VOCFolder`.
        classes: see `VOCFolder`.
        masks_dir: see `VOCFolder`.
        images_dir: see `VOCFolder`.
        lists_dir: see `VOCFolder`.
        crop_size: side of training and validation images in pixels.
        resize_long: (smallest, largest) longer side in training, pixels.
        eval_resize_long: longer side in validation, pixels.
        scales: of the views.
        batch_size: total over all processes.
        num_workers: of each data loader, or "auto": one per core, at most 8. 0 loads in the main process.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        seed: of shuffling, augmentation and reference images.
        max_side: see `ViewsDataset`.
        on_error: see `DataSplits`.
        held_out: see `DataSplits`.
        dataset: see `DataSplits`.

    Raises:
        ConfigError: a setting is out of range, or both or none of `root` and `dataset` are given.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        train_split: str = "train",
        eval_splits: str | Sequence[str] = ("train", "val"),
        pseudo_split: str | None = None,
        labels: str | Path = "auto",
        classes: Sequence[str] | str | Path | None = None,
        masks_dir: str = "SegmentationClass",
        images_dir: str | Sequence[str] = "JPEGImages",
        lists_dir: str = "ImageSets/Segmentation",
        crop_size: int = 512,
        resize_long: Sequence[int] = (320, 640),
        eval_resize_long: int = 480,
        scales: Sequence[float] = SCALES,
        batch_size: int = 16,
        num_workers: int | Literal["auto"] = "auto",
        mean: Channels = IMAGENET_MEAN,
        std: Channels = IMAGENET_STD,
        seed: int = 0,
        max_side: int | None = None,
        on_error: OnError = "raise",
        held_out: float = 0.0,
        dataset: Callable[..., ImageDataset] | None = None,
    ) -> None:
        super().__init__(
            root, train_split, eval_splits, pseudo_split, on_error, held_out, dataset, labels=labels,
            classes=classes, masks_dir=masks_dir, images_dir=images_dir, lists_dir=lists_dir,
        )  # fmt: skip
        self.max_side = max_side
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("crop_size", crop_size, low=1, whole=True)
        check_number("max_side", max_side, low=1, whole=True, words=(None,))
        check_scales(scales)
        check_numbers("mean", mean, number=3)
        check_numbers("std", std, number=3, above=0)
        check_number("num_workers", num_workers, low=0, whole=True, words=("auto",))
        self.scales, self.mean, self.std = tuple(scales), three(mean), three(std)
        self.batch_size, self.seed = batch_size, seed
        self.num_workers = min(8, cores()) if num_workers == "auto" else num_workers
        self.train_transform = train_transform(crop_size, resize_long, self.mean, self.std)
        self.eval_transform = eval_transform(crop_size, eval_resize_long, self.mean, self.std)

    def train_dataloader(self) -> DataLoader:
        """Shuffled and augmented batches: `Sample` of image (B, 3, S, S) and labels (B, C)."""
        return self.training_batches(self.train.with_transform(self.train_transform))

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Batches of the first eval_split without images of train_split, else of another one.

        VOC's train is part of trainaug, so it is no validation split for it. Empty list without a split.
        """
        others = [folder for split, folder in self.evals.items() if split != self.train_split]
        train_ids = set(self.train.ids)
        others.sort(key=lambda folder: not train_ids.isdisjoint(folder.ids))  # a stable sort
        return self.validation_batches(others[0].with_transform(self.eval_transform)) if others else []

    def predict_dataset(
        self, ids: Sequence[str] | None = None, scales: Sequence[float] | None = None
    ) -> ViewsDataset:
        """Images with their views; see `ViewsDataset`.

        Args:
            ids: from any of the splits, in any order; None for all.
            scales: of the views; None for those of the data module.
        """
        chosen = self.all_ids if ids is None else ids
        return ViewsDataset(self.folders, chosen, scales or self.scales, self.mean, self.std, self.max_side)

    def prediction_loader(
        self, ids: Sequence[str] | None = None, scales: Sequence[float] | None = None, processes: int = 1
    ) -> DataLoader:
        """Items of `predict_dataset` one by one, not stacked, for `Trainer.predict`.

        With fewer images than processes some are repeated, because Lightning requires an image per process;
        the results are equal.

        Args:
            ids: see `predict_dataset`.
            scales: see `predict_dataset`.
            processes: of the Trainer.
        """
        chosen = self.all_ids if ids is None else ids
        repeated = list(islice(cycle(chosen), max(len(chosen), processes)))
        # Items are large tensors: the default of two prefetched items per worker is enough.
        return DataLoader(
            self.predict_dataset(repeated, scales),
            batch_size=1,
            collate_fn=only_item,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else it would change the global random state
        )

    def predict_dataloader(self) -> DataLoader:
        """The `prediction_loader` of all images."""
        _, processes = rank_of(self.trainer)
        return self.prediction_loader(processes=processes)

    def references(self, batch_size: int = 20, pool: ImagePool | None = None) -> ReferenceBatches:
        """Reference images for RIB from train_split, augmented as in training.

        Args:
            batch_size: B, per step.
            pool: see `ReferenceBatches`.
        """
        sampler = ReferenceSampler(self.train.ids, self.train.labels, self.seed)
        return ReferenceBatches(
            self.train, sampler, self.train_transform, batch_size,
            threads=self.num_workers, pool=pool, pin=torch.cuda.is_available(),
        )  # fmt: skip
