"""The LightningDataModule of all stages."""

import hashlib
import itertools
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.utils.data import DataLoader

from ribseg.checks import check_choice, check_number, check_numbers
from ribseg.data.adapted import AdaptedDataset
from ribseg.data.augment.transforms import eval_transform, train_transform
from ribseg.data.base import BaseDataset, ImageDataset
from ribseg.data.check.dataset import CheckReport, OnError, check_dataset
from ribseg.data.feed.image_pool import ImagePool
from ribseg.data.feed.references import ReferenceBatches, ReferenceSampler
from ribseg.data.feed.views import SCALES, ViewsDataset, check_scales, only_item
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD, Channels, three
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError, DataError
from ribseg.modules.epoch_data import EpochDataModule, rank_of
from ribseg.workers import cores

HELD_OUT = "held_out"  # split: the part of train_split that is kept from training


class WSSSDataModule(EpochDataModule):
    """Data of weakly supervised semantic segmentation: images and image-level labels.

    Data sets are opened on first use, so every attribute works with or without a Trainer.

    Args:
        root: see `VOCFolder`; None with `dataset`.
        train_split: for training the classifier, and for reference images.
        eval_splits: for computing and evaluating localization maps; may include train_split.
        pseudo_split: for pseudo masks, with which affinity network and segmenter are trained; None for
            train_split. A subset of a large train_split saves computing the other maps.
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
        on_error: for missing or broken files: "raise" an error, or "skip" their images; see `check`, `drop`.
        held_out: share of the images of train_split that are taken from it and from pseudo_split, and are the
            split "held_out", for choosing settings without another split: name it in eval_splits. Which
            images depends on their ids alone, not on the seed.
        dataset: factory of a custom data set, called with `split=...`; see `ribseg.data.ImageDataset`. It
            ignores the arguments for `VOCFolder`. None for `VOCFolder`.

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
        super().__init__()
        check_choice("on_error", on_error, get_args(OnError))
        self.on_error, self.max_side = on_error, max_side
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("crop_size", crop_size, low=1, whole=True)
        check_number("max_side", max_side, low=1, whole=True, words=(None,))
        self.train_split, self.pseudo_split = train_split, pseudo_split or train_split
        self.eval_splits = (eval_splits,) if isinstance(eval_splits, str) else tuple(eval_splits)
        _check_share(held_out, self.eval_splits)
        self.held_out = held_out
        check_scales(scales)
        check_numbers("mean", mean, number=3)
        check_numbers("std", std, number=3, above=0)
        check_number("num_workers", num_workers, low=0, whole=True, words=("auto",))
        self.scales, self.mean, self.std = tuple(scales), three(mean), three(std)
        self.batch_size, self.seed = batch_size, seed
        self.num_workers = min(8, cores()) if num_workers == "auto" else num_workers
        self.train_transform = train_transform(crop_size, resize_long, self.mean, self.std)
        self.eval_transform = eval_transform(crop_size, eval_resize_long, self.mean, self.std)
        _check_source(root, dataset)
        self._own = dataset
        self._voc = partial(
            VOCFolder, str(root), classes=classes, labels=labels,
            masks_dir=masks_dir, images_dir=images_dir, lists_dir=lists_dir,
        )  # fmt: skip
        self._opened: dict[str, BaseDataset] = {}
        self._folders: dict[str, BaseDataset] | None = None

    def open(self, split: str, **replaced: Any) -> BaseDataset:
        """Opens a split; with `VOCFolder`, keyword arguments override its settings."""
        if self._own is None:
            return self._voc(split=split, **replaced)
        source = self._own(split=split)
        return source if isinstance(source, VOCFolder) else AdaptedDataset(source, split)

    @property
    def train(self) -> BaseDataset:
        """The split for training the classifier, without transform."""
        return self._split(self.train_split)

    @property
    def pseudo(self) -> BaseDataset:
        """The split for training affinity network and segmenter, without transform."""
        return self._split(self.pseudo_split)

    @property
    def evals(self) -> dict[str, BaseDataset]:
        """Split -> data set, without transform, for the eval_splits."""
        return {split: self._split(split) for split in self.eval_splits}

    @property
    def splits(self) -> list[BaseDataset]:
        """Each split once, train_split first."""
        return self._splits(self.train_split, self.pseudo_split, *self.eval_splits)

    @property
    def mapped(self) -> list[BaseDataset]:
        """The splits with localization maps, each once: pseudo_split, then eval_splits."""
        return self._splits(self.pseudo_split, *self.eval_splits)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without background."""
        return tuple(self.train.classes)

    @property
    def num_classes(self) -> int:
        """C, without background."""
        return self.train.num_classes

    @property
    def folders(self) -> dict[str, BaseDataset]:
        """Image id -> the first of `splits` with this image."""
        if self._folders is None:
            self._folders = {}
            for dataset in self.splits:
                self._folders |= {i: dataset for i in dataset.ids if i not in self._folders}
        return self._folders

    @property
    def all_ids(self) -> list[str]:
        """Ids of the images with localization maps, each once, in the order of `mapped`."""
        return list(dict.fromkeys(i for dataset in self.mapped for i in dataset.ids))

    def setup(self, stage: str | None = None) -> None:
        """Opens all splits that are not open yet."""
        _ = self.folders

    def check(
        self, full: bool = False, masks: bool = True, progress: bool | str = False
    ) -> dict[str, CheckReport]:
        """Checks the files of all splits; call it once, before the first stage.

        Args:
            full: decode every file; otherwise read headers only.
            masks: whether the eval_splits need masks. Training needs none.
            progress: how progress is shown, see `ribseg.progress.check_progress`.

        Returns:
            A report per split.

        Raises:
            DataError: lists the problems of all splits; with on_error="skip" only if no image is usable.
        """
        reports, errors = {}, []
        for folder in self.splits:
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
        """Removes images from all splits, e.g. those that `check` skipped."""
        self._opened = {dataset.split: dataset.without(ids) for dataset in self.splits}
        self._folders = None

    def fingerprint(self, masks: bool) -> str:
        """SHA-256 of the fingerprints of all splits; see `VOCFolder.fingerprint`."""
        parts = [dataset.fingerprint(masks) for dataset in self.splits]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

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
        chosen = self.all_ids if ids is None else list(ids)
        if 0 < len(chosen) < processes:
            chosen = list(itertools.islice(itertools.cycle(chosen), processes))
        # Items are large tensors: the default of two prefetched items per worker is enough.
        return DataLoader(
            self.predict_dataset(chosen, scales),
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

    def _splits(self, *names: str) -> list[BaseDataset]:
        return [self._split(name) for name in dict.fromkeys(names)]

    def _split(self, split: str) -> BaseDataset:
        if split not in self._opened:
            self._opened[split] = self._open_part(split)
        return self._opened[split]

    def _open_part(self, split: str) -> BaseDataset:
        """A split without the images held out, if it is for training; or these alone."""
        if not self.held_out or split not in (HELD_OUT, self.train_split, self.pseudo_split):
            return self.open(split)
        train = self.open(self.train_split)
        held = held_out_ids(train.ids, self.held_out)
        if split == HELD_OUT:
            part = train.without(set(train.ids) - held)
            part.split = HELD_OUT
            return part
        return (train if split == self.train_split else self.open(split)).without(held)


def held_out_ids(ids: Sequence[str], share: float) -> set[str]:
    """The ids of a share of the images, at least one, chosen by a hash of the ids.

    Raises:
        ConfigError: no image would be left.

    >>> sorted(held_out_ids([f"im_{number}" for number in range(10)], 0.2))
    ['im_3', 'im_7']
    """
    number = max(1, round(share * len(ids)))
    if number >= len(ids):
        raise ConfigError(f"data.held_out={share} would leave none of {len(ids)} images for training")
    return set(sorted(ids, key=lambda image_id: hashlib.sha256(image_id.encode()).digest())[:number])


def _check_share(held_out: float, eval_splits: Sequence[str]) -> None:
    check_number("held_out", held_out, low=0, high=1)
    if held_out and HELD_OUT not in eval_splits:
        raise ConfigError(
            f"data.held_out={held_out} takes images from training, and nothing would look at them: name the "
            f"split, data.eval_splits=[{HELD_OUT}]"
        )


def _check_source(root: str | Path | None, dataset: Any) -> None:
    """Raises a ConfigError unless either the root or a factory of data sets is given."""
    if root is None and dataset is None:
        raise ConfigError("the setting data.root has no default; give it: data.root=...")
    if root is not None and dataset is not None:
        raise ConfigError(
            f"data.root={root} would have no effect: data.dataset creates the data sets. Pass paths as its "
            "arguments: +data.dataset.NAME=..."
        )
    if not callable(dataset) and dataset is not None:
        raise ConfigError(
            f"expected data.dataset to be a factory, called for each split, got a {type(dataset).__name__}: "
            "set data.dataset._partial_=true"
        )
