"""One LightningDataModule for all stages."""

import hashlib
import itertools
import os
from collections.abc import Collection, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from ribseg.checks import check_number
from ribseg.data.augment.seeding import (
    is_seeded,
    rank_and_processes,
    share_of,
    training_loader,
    validation_loader,
)
from ribseg.data.augment.transforms import eval_transform, train_transform
from ribseg.data.check.dataset import CheckReport, OnError, check_dataset
from ribseg.data.feed.image_pool import ImagePool
from ribseg.data.feed.iterations import only_item
from ribseg.data.feed.references import ReferenceBatches, ReferenceSampler
from ribseg.data.feed.served import ServedImages
from ribseg.data.feed.views import SCALES, ViewsDataset, check_scales
from ribseg.data.ids import Ids
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError, DataError

Channels = tuple[float, float, float]


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


class WSSSDataModule(EpochDataModule):
    """Data of weakly supervised semantic segmentation: images and image-level labels, in VOC layout.

    Data sets are opened on first use, so every attribute can be used with or without a Trainer.

    Args:
        root: see `VOCFolder`.
        train_split: the classifier learns from it, and reference images come from it.
        eval_splits: localization maps are made and evaluated on these; may name train_split.
        labels: see `VOCFolder`.
        classes: see `VOCFolder`.
        masks_dir: see `VOCFolder`.
        images_dir: see `VOCFolder`.
        lists_dir: see `VOCFolder`.
        crop_size: side of training and validation images in pixels.
        resize_long: (smallest, largest) longer side in training.
        eval_resize_long: longer side in validation.
        scales: of the views.
        batch_size: over all processes together; each gets its share.
        num_workers: of each data loader, or "auto": one per core, at most 8. 0 loads in the main process.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        seed: of shuffling, augmentation and reference images.
        max_side: see `ViewsDataset`.
        on_error: "raise" if a file is broken or absent, or "skip" such images, see `check` and `drop`.
        predict_ids: what `predict_dataloader` serves; None for all. May be set anew before each prediction.

    Attributes:
        train: VOCFolder of train_split, without transform.
        evals: dict, split -> VOCFolder, without transform.
        classes: tuple of names; `num_classes` is their number. Without background.
        all_ids: ids of train_split and eval_splits, each once, in this order.

    Raises:
        ConfigError: if a setting cannot work.
    """

    def __init__(
        self,
        root: str | Path,
        train_split: str = "train",
        eval_splits: str | Sequence[str] = ("train", "val"),
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
        predict_ids: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if on_error not in get_args(OnError):
            raise ConfigError(f"expected on_error raise or skip, found {on_error!r}.")
        self.on_error, self.max_side = on_error, max_side
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("crop_size", crop_size, low=1, whole=True)
        check_number("max_side", max_side, low=1, whole=True, words=(None,))
        self.train_split = train_split
        self.eval_splits = (eval_splits,) if isinstance(eval_splits, str) else tuple(eval_splits)
        check_scales(scales)
        self.scales, self.mean, self.std = tuple(scales), _channels(mean, "mean"), _channels(std, "std")
        self.batch_size, self.seed, self.predict_ids = batch_size, seed, predict_ids
        self.predict_scales: Sequence[float] | None = None  # None for `scales`
        self.num_workers = _workers(num_workers)
        self.train_transform = train_transform(crop_size, resize_long, self.mean, self.std)
        self.eval_transform = eval_transform(crop_size, eval_resize_long, self.mean, self.std)
        self._open = partial(
            VOCFolder,
            root,
            classes=classes,
            labels=labels,
            masks_dir=masks_dir,
            images_dir=images_dir,
            lists_dir=lists_dir,
        )

    def open(self, split: str, **replaced: Any) -> VOCFolder:
        """A split of the same data; keyword arguments of `VOCFolder` replace settings."""
        return self._open(split, **replaced)

    @cached_property
    def train(self) -> VOCFolder:
        """The split that the classifier learns from."""
        return self._open(self.train_split)

    @cached_property
    def evals(self) -> dict[str, VOCFolder]:
        """The splits that are evaluated."""
        return {
            split: self.train if split == self.train_split else self._open(split)
            for split in self.eval_splits
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without background."""
        return self.train.classes

    @property
    def num_classes(self) -> int:
        """C, without background."""
        return self.train.num_classes

    @cached_property
    def folders(self) -> ServedImages:
        """Image id -> the first split that holds it, train_split before eval_splits."""
        return ServedImages(self.served)

    @property
    def all_ids(self) -> Ids:
        """Ids of everything served, each once; reads as a list, see `Ids`."""
        return self.folders.ids

    def setup(self, stage: str | None = None) -> None:
        """Opens all splits; a second call does nothing."""
        _ = self.folders

    def check(self, full: bool = False, masks: bool = True, progress: bool = False) -> dict[str, CheckReport]:
        """Looks through everything that will be served; call it once, before the first stage.

        Args:
            full: decode every file; otherwise headers only.
            masks: whether the eval_splits need masks. Training needs none.
            progress: show a progress bar.

        Returns:
            A report per split.

        Raises:
            DataError: lists what is wrong in all splits; with on_error="skip" only if nothing is good.
        """
        reports, errors = {}, []
        for folder in self.served:
            try:
                need = masks and folder.split in self.eval_splits
                reports[folder.split] = check_dataset(
                    folder, need, full, progress=progress, on_error=self.on_error
                )
            except DataError as error:
                errors.append(str(error))
        if errors:
            raise DataError("\n".join(errors))
        return reports

    def drop(self, ids: Collection[str]) -> None:
        """Takes images off all lists, e.g. those that `check` has skipped."""
        train, evals = self.train.without(ids), self.evals
        self.evals = {s: train if s == self.train_split else f.without(ids) for s, f in evals.items()}
        self.train = train
        self.__dict__.pop("folders", None)  # made anew from what is left

    def fingerprint(self, masks: bool) -> str:
        """sha256 over all that is served: classes, ids, labels, sizes of the image (and mask) files in bytes.

        Cheap: no file is opened. Does not depend on where the root is.
        """
        parts = [folder.fingerprint(masks) for folder in self.served]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def train_dataloader(self) -> DataLoader:
        """Batches of dict(id, image (B,3,S,S), labels (B,C)), shuffled and augmented, for the classifier."""
        return self.training_batches(self.train.with_transform(self.train_transform))

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Batches of the first of eval_splits that is not train_split; an empty list if there is none."""
        held_out = [folder for split, folder in self.evals.items() if split != self.train_split]
        return self.validation_batches(held_out[0].with_transform(self.eval_transform)) if held_out else []

    def predict_dataset(self, ids: Sequence[str] | None = None) -> ViewsDataset:
        """Images with their views, one an item; see `ViewsDataset`.

        Args:
            ids: from any of the splits, in any order; None for all.
        """
        return ViewsDataset(
            self.folders,
            self.all_ids if ids is None else ids,
            self.predict_scales or self.scales,
            self.mean,
            self.std,
            self.max_side,
        )

    def predict_dataloader(self, ids: Sequence[str] | None = None) -> DataLoader:
        """Items of `predict_dataset` one by one, not stacked; ids: None for `predict_ids`.

        With fewer images than processes some come twice, because Lightning lets no process be without any;
        the result of an image does not depend on who computes it.
        """
        ids = self.predict_ids if ids is None else ids
        chosen = Ids.of(self.all_ids if ids is None else ids)
        _, processes = rank_of(self.trainer)
        if 0 < len(chosen) < processes:
            chosen = Ids(itertools.islice(itertools.cycle(chosen), processes))
        # Large tensors of all sizes: two items in advance per worker are enough.
        return DataLoader(
            self.predict_dataset(chosen),
            batch_size=1,
            collate_fn=only_item,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else it would draw from the global stream
        )

    def references(
        self,
        batch_size: int = 20,
        threads: int | None = None,
        pool: ImagePool | None = None,
    ) -> ReferenceBatches:
        """Reference images for RIB from train_split, augmented as in training.

        Args:
            batch_size: B, per step.
            threads: see `ReferenceBatches`; None for num_workers.
            pool: see `ReferenceBatches`.
        """
        sampler = ReferenceSampler(self.train.ids, self.train.labels, self.seed)
        threads = self.num_workers if threads is None else threads
        pin = torch.cuda.is_available()
        return ReferenceBatches(self.train, sampler, self.train_transform, batch_size, threads, pool, pin)

    @property
    def served(self) -> list[VOCFolder]:
        """Each split once, train_split first."""
        return [self.train, *(folder for split, folder in self.evals.items() if split != self.train_split)]


def _channels(values: Sequence[float], name: str) -> Channels:
    if len(values) != 3 or (name == "std" and min(values) <= 0):
        raise ConfigError(f"expected {name} as three numbers, those of std above 0; found {tuple(values)}.")
    return float(values[0]), float(values[1]), float(values[2])


def _workers(number: int | str) -> int:
    if number == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, cores)
    if not isinstance(number, int) or number < 0:
        raise ConfigError(f"expected num_workers = auto or an integer >= 0, found {number!r}.")
    return number
