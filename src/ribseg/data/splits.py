"""The splits of a data set: opened on first use, checked, and without broken or held out images."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from ribseg.checks import check_choice, check_number
from ribseg.data.adapted import AdaptedDataset
from ribseg.data.base import BaseDataset, ImageDataset
from ribseg.data.check.dataset import CheckReport, OnError, check_dataset
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError, DataError
from ribseg.store.contents import Contents

HELD_OUT = "held_out"  # split: the part of train_split that is kept from training


class DataSplits:
    """The splits of a data set, opened on first use.

    Args:
        root: see `VOCFolder`; None with `dataset`.
        train_split: for training the classifier, and for reference images.
        eval_splits: for computing and evaluating localization maps; may include train_split.
        pseudo_split: for pseudo masks, with which affinity network and segmenter are trained; None for
            train_split. A subset of a large train_split saves computing the other maps.
        on_error: for missing or broken files: "raise" an error, or "skip" their images; see `check`, `drop`.
        held_out: share of the images of train_split that are taken from it and from pseudo_split, and are the
            split "held_out", for choosing settings without another split: name it in eval_splits. Which
            images depends on their ids alone, not on the seed.
        dataset: factory of a custom data set, called with `split=...`; see `ribseg.data.ImageDataset`. It
            ignores the arguments for `VOCFolder`. None for `VOCFolder`.
        folder: arguments for `VOCFolder`: labels, classes, masks_dir, images_dir, lists_dir.

    Attributes:
        contents: the digests of files, for fingerprints.

    Raises:
        ConfigError: a setting is out of range, or both or none of `root` and `dataset` are given.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        train_split: str = "train",
        eval_splits: str | Sequence[str] = ("train", "val"),
        pseudo_split: str | None = None,
        on_error: OnError = "raise",
        held_out: float = 0.0,
        dataset: Callable[..., ImageDataset] | None = None,
        **folder: Any,
    ) -> None:
        super().__init__()
        check_choice("on_error", on_error, get_args(OnError))
        self.on_error = on_error
        self.train_split, self.pseudo_split = train_split, pseudo_split or train_split
        self.eval_splits = (eval_splits,) if isinstance(eval_splits, str) else tuple(eval_splits)
        _check_share(held_out, self.eval_splits)
        self.held_out = held_out
        _check_source(root, dataset)
        self._own, self.contents = dataset, Contents()
        self._voc = partial(VOCFolder, str(root), **folder)
        self._opened: dict[str, BaseDataset] = {}
        self._folders: dict[str, BaseDataset] | None = None

    def open(self, split: str, **replaced: Any) -> BaseDataset:
        """Opens a split; with `VOCFolder`, keyword arguments override its settings."""
        source = self._own(split=split) if self._own is not None else self._voc(split=split, **replaced)
        if not isinstance(source, VOCFolder):
            return AdaptedDataset(source, split)
        source.contents = self.contents
        return source

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

    @property
    def labelled_ids(self) -> list[str]:
        """Those of `all_ids` whose image has a class."""
        return [image_id for image_id in self.all_ids if self.folders[image_id].has_class(image_id)]

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
