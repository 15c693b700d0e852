"""The training of a segmenter on pseudo masks, or fully supervised (docs/method.md, section 6)."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from ribseg.checks import check_arguments, check_choice, check_switch, within
from ribseg.data.augment.segmentation import (
    Reader,
    SegmentationDataset,
    segmentation_train_transform,
    whole_image_transform,
)
from ribseg.data.base import BaseDataset
from ribseg.data.io.masks import voc_palette
from ribseg.errors import ConfigError
from ribseg.models import Classifier, Segmenter, SMPSegmenter
from ribseg.models.inference import check_inference
from ribseg.modules.callbacks import MovingAverage
from ribseg.modules.segmentation_data import SegmentationDataModule
from ribseg.pipeline.recipe.build import build, check_training, takes
from ribseg.pipeline.recipe.data import PIXELS
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.recipe.training import (
    ValidationCurve,
    WholeCheckpoint,
    check_ended,
    check_finite,
    fit_from,
)
from ribseg.pipeline.stages.chains import FULL, active_sources, segmenter_name
from ribseg.pipeline.stages.checked_data import check_full_masks
from ribseg.pipeline.stages.classifier import ClassifierStage
from ribseg.pipeline.stages.pseudo_masks import PseudoMasksStage, read_pseudo_mask
from ribseg.store.artefact import Artefact
from ribseg.store.settings import COUNT, PLACE, SHARE, SHOWN, counted, setting
from ribseg.store.stage import Stage

WEIGHTS = "segmenter.safetensors"


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """The settings `segmenter`."""

    model: Mapping[str, Any] = setting()
    module: Mapping[str, Any] = setting()
    max_steps: int = setting(COUNT)
    check_every: int = setting(COUNT)
    batch_size: int = setting(COUNT)
    accumulate: int = setting(COUNT)
    crop_size: int = setting(COUNT)
    scale: Sequence[float] = setting()
    precision: str | None = setting()
    average: float | None = setting(partial(SHARE, words=(None,)))
    select: str = setting(partial(check_choice, choices=("last", "best")))
    splits: Sequence[str] | None = setting()
    test: Mapping[str, Any] = setting(partial(check_arguments, check_inference))
    sync_batchnorm: bool = setting(check_switch, default=False)
    validate: bool = setting(check_switch, default=False)
    callbacks: Mapping[str, Any] | None = setting(default=None)
    sources: Sequence[str] = setting(neutral="selects segmenters; each has its own artefact")
    masks_dir: str | None = setting(neutral=PLACE)
    expected: Mapping[str, float] | None = setting(neutral=SHOWN)

    def __post_init__(self) -> None:
        """Raises a ConfigError if steps and checkpoints do not fit together."""
        if self.max_steps % self.check_every:
            raise ConfigError(
                f"expected segmenter.max_steps={self.max_steps} as a multiple of segmenter.check_every="
                f"{self.check_every}, so that the last checkpoint is the end of the training"
            )


class SegmenterStage(Stage[Session]):
    """Trains a segmenter.

    Args:
        session: of the run.
        source: the stage whose maps gave the pseudo masks to learn from, or "full" for the ground truth.
        masks: the stage that makes these masks; None for the ground truth.
        classifier: the stage that trains it, for its backbone.
    """

    sections = ("segmenter",)
    files = (WEIGHTS,)
    version = 2  # dropout by iteration

    def __init__(
        self, session: Session, source: str, masks: PseudoMasksStage | None, classifier: ClassifierStage
    ) -> None:
        super().__init__(session)
        self.cfg = session.settings[SegmenterSettings]
        self.source, self.masks, self.name = source, masks, segmenter_name(source)
        self.classifier = classifier if self.cfg.model.get("weights") == "classifier" else None

    def wanted(self) -> bool:
        """Whether the run trains or reports it."""
        return self.source in active_sources(self.session)

    def inputs(self) -> Sequence[Stage[Session]]:
        """The pseudo masks, and the classifier if its backbone is the initialization."""
        return [stage for stage in (self.masks, self.classifier) if stage is not None]

    def settings(self) -> dict[str, Any]:
        """Its own; those of the validation count only if it decides."""
        own, decides = counted(self.cfg), self.validation_decides
        for name in () if decides else ("check_every", "splits", "test"):
            del own[name]
        used = (*PIXELS, "eval_splits") if decides else PIXELS
        return {"segmenter": own} | self.session.counted("callbacks", "trainer", "seed", "tf32", data=used)

    @property
    def validation_decides(self) -> bool:
        """Whether the resulting weights depend on validation scores: with select=best, or with callbacks."""
        return self.cfg.select == "best" or bool(self.session.callback_nodes("segmenter"))

    def data(self) -> str:
        """The images and masks for training, and those of the validation if it decides."""
        data = self.training_folder.fingerprint(masks=self.source == FULL)
        watch = validation_folder(self.session)
        if watch is not None and self.validation_decides:
            data += watch.fingerprint(masks=True)
        return data

    @property
    def training_folder(self) -> BaseDataset:
        """The training images; for "full" with the masks of segmenter.masks_dir, if set."""
        if self.source == FULL and self.cfg.masks_dir is not None:
            return self.session.data.pseudo.with_masks(self.cfg.masks_dir)
        return self.session.data.pseudo

    def check(self) -> None:
        """Checks the settings and the masks; builds the network and its training."""
        cfg, session = self.cfg, self.session
        session.callbacks("segmenter")
        if cfg.select == "best" and validation_folder(session) is None:
            raise ConfigError(
                "expected segmenter.select=last, or best with segmenter.validate=true and data.eval_splits "
                f"with masks; got {cfg.select} with validate={cfg.validate}"
            )
        if self.source == FULL:
            self._check_full()
        if session.run.is_ready(self):
            return
        if self.classifier:  # it may not be trained yet, but has the same shapes
            classifier = self.classifier.checked
            if not hasattr(classifier, "backbone"):
                raise ConfigError(
                    "segmenter.model.weights=classifier expects a classifier with a backbone, and "
                    f"{type(classifier).__name__} has none; give the segmenter a network of its own, such as "
                    "segmenter/network@segmenter.model=smp"
                )
            with within("segmenter.model"):
                take_backbone(self.model, classifier)
        _ = self.module
        if cfg.precision is not None:
            with within("segmenter.precision"):
                build(session.cfg.trainer, logger=False, precision=cfg.precision)
        crops = self.crops()
        crops.check(session.processes)
        together = session.processes if self.synchronised else 1
        if crops.batch_size // crops.accumulate // session.processes * together == 1:
            check_one_crop(self.model, cfg.crop_size)

    @property
    def synchronised(self) -> bool:
        """Whether BatchNorm counts the crops of all processes together."""
        return self.cfg.sync_batchnorm or self.session.cfg.trainer.get("sync_batchnorm", False)

    def _check_full(self) -> None:
        """Raises a RibsegError if masks are missing that the fully supervised segmenter learns from."""
        folder = self.training_folder
        absent = [image_id for image_id in folder.ids if not folder.has_mask(image_id)]
        if absent:
            raise ConfigError(
                f"segmenter.sources=[full] learns from the ground truth, but {len(absent)} of {len(folder)} "
                f"training images of {folder.origin} have no mask, first {absent[:3]}; name the folder "
                "that has all of them with segmenter.masks_dir (VOC: SegmentationClassAug)"
            )
        self.session.group.on_first(lambda: check_full_masks(self.session, folder))

    @cached_property
    def model(self) -> nn.Module:
        """The configured network for the classes of the data; without the classifier's backbone yet."""
        extra = {"weights": None} if self.classifier else {}
        pl.seed_everything(self.session.cfg.seed, workers=True, verbose=False)
        with within("segmenter.model"):
            # Plain values, because they go into the segmenter's file.
            number = self.session.data.num_classes + 1
            return build(self.cfg.model, num_classes=number, _convert_="all", **extra)

    @cached_property
    def module(self) -> pl.LightningModule:
        """The configured training of the network; it tiles images as the test does, if it can."""
        cfg = self.cfg
        tiles = {name: cfg.test[name] for name in ("tile", "margin") if takes(cfg.module, name)}
        return check_training("segmenter.module", cfg.module, model=self.model, **tiles)

    def crops(self) -> SegmentationDataModule:
        """Training crops, and whole images for the validation if there is one."""
        cfg, data = self.cfg, self.session.data
        transform = segmentation_train_transform(cfg.crop_size, cfg.scale, data.mean, data.std)
        train = SegmentationDataset(data.pseudo.ids, data.pseudo.image, self._read_mask(), transform)
        val, folder = None, validation_folder(self.session)
        if folder is not None:
            whole = whole_image_transform(data.mean, data.std)
            val = SegmentationDataset(folder.ids, folder.image, folder.mask, whole)
        seed, workers = self.session.cfg.seed, data.num_workers
        return SegmentationDataModule(train, val, cfg.batch_size, cfg.accumulate, workers, seed)

    def _read_mask(self) -> Reader:
        """The function that reads the training mask of an image id."""
        if self.masks is None:
            return self.training_folder.mask
        folder, variant = self.masks.artefact.folder, self.masks.cfg.variants[-1]
        return partial(read_pseudo_mask, folder, variant, self.session.data.num_classes)

    def work(self, target: Artefact) -> dict[str, Any]:
        """Trains, resuming from the last checkpoint, and saves the last or the best weights."""
        cfg, session, model, module = self.cfg, self.session, self.model, self.module
        if self.classifier:
            take_backbone(model, self.classifier.trained)
        pl.seed_everything(session.cfg.seed, workers=True, verbose=False)
        facts = self._train(target, module)
        chosen = torch.load(checkpoint(target, cfg.select), map_location="cpu", weights_only=True)
        prefix = "model."
        state = {k.removeprefix(prefix): v for k, v in chosen["state_dict"].items() if k.startswith(prefix)}
        check_finite(target, state.values(), "segmenter.module.lr", cfg.module.get("lr"))
        model.load_state_dict(state)
        data = session.data
        segmenter = Segmenter(model, data.classes, data.mean, data.std, voc_palette(), dict(cfg.test))
        session.group.on_first(lambda: segmenter.save(target.folder / WEIGHTS))
        return facts | {"selected": cfg.select, "selected_at": chosen["global_step"]}

    def _train(self, target: Artefact, module: pl.LightningModule) -> dict[str, Any]:
        """Trains for the configured number of iterations; returns metrics."""
        cfg, session, data = self.cfg, self.session, self.crops()
        own, curve = session.callbacks("segmenter"), ValidationCurve("val/miou")
        trainer = session.trainer(
            target.stage,
            target.folder,
            [curve, *training_callbacks(cfg, target.folder / "checkpoints", data.val is not None), *own],
            max_steps=cfg.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=cfg.accumulate,
            sync_batchnorm=self.synchronised,
            precision=cfg.precision or session.cfg.trainer.precision,
            use_distributed_sampler=False,  # the batches are divided among processes already
            check_val_every_n_epoch=None,
            val_check_interval=cfg.check_every * cfg.accumulate,
            limit_val_batches=None if data.val is not None else 0,
        )
        metrics = fit_from(session, trainer, module, data, checkpoint(target, "last"))
        check_ended(trainer, target.stage, steps=cfg.max_steps)
        return metrics | {"validation": curve.values}


def training_callbacks(cfg: SegmenterSettings, folder: Path, validates: bool) -> list[Callback]:
    """Callbacks for the last checkpoint, the best one with validation, and the moving average."""
    # With validation the last checkpoint is saved after it: a resumed training then has the same state.
    every = None if validates else cfg.check_every
    callbacks: list[Callback] = []
    if validates:
        # Before the last checkpoint, which must contain the best score so far.
        callbacks.append(WholeCheckpoint(folder, "best", cfg.check_every, monitor="val/miou", mode="max"))
    callbacks.append(WholeCheckpoint(folder, "last", cfg.check_every, every_n_train_steps=every))
    if cfg.average is not None:
        callbacks.append(MovingAverage(decay=cfg.average))
    return callbacks


def tested_folders(session: Session) -> dict[str, BaseDataset]:
    """Split -> images and masks of the test.

    Raises:
        ConfigError: there is none, or one is not in data.eval_splits.
    """
    known, chosen = session.data.evals, session.settings[SegmenterSettings].splits
    splits = list(known)[-1:] if chosen is None else list(chosen)
    if not splits or not set(splits) <= set(known):
        raise ConfigError(
            f"expected segmenter.splits=[...] with some of data.eval_splits={list(known)}, got {splits}; "
            "without masks name the training alone: run=[...,segmenter_rib]"
        )
    return {split: known[split] for split in splits}


def validation_folder(session: Session) -> BaseDataset | None:
    """The validation set: the first tested split; None with validate=false or without masks."""
    if not session.settings[SegmenterSettings].validate or not session.data.eval_splits:
        return None
    return next(iter(tested_folders(session).values()))


def take_backbone(model: Any, classifier: Classifier) -> None:
    """Copies the weights of the classifier's backbone into the segmenter.

    Raises:
        ConfigError: the segmenter has another backbone.
    """
    try:
        if isinstance(model, SMPSegmenter):
            model.take_backbone(classifier.backbone)
        else:
            model.backbone.load_state_dict(classifier.backbone.state_dict())
    except (AttributeError, RuntimeError, ConfigError) as error:
        raise ConfigError(
            "segmenter.model.weights=classifier needs a segmenter over the classifier's backbone; set "
            "segmenter.model.backbone and backbone_kwargs (encoder=tu-NAME and kwargs) to those of "
            f"classifier.model, or give it weights of its own: {error}"
        ) from error


def check_one_crop(model: nn.Module, side: int) -> None:
    """Raises a ConfigError if a network cannot learn from a single crop, as BatchNorm of pooled features."""
    try:
        with torch.no_grad():
            deepcopy(model).train()(torch.zeros(1, 3, side, side))
    except ValueError as error:
        raise ConfigError(
            "expected at least two crops at a time in each process for this segmenter, got one: raise "
            "segmenter.batch_size, lower segmenter.accumulate, or, with several processes, set "
            f"segmenter.sync_batchnorm=true: {error}"
        ) from error


def checkpoint(artefact: Artefact, which: str) -> Path:
    """The file of the "last" or the "best" checkpoint."""
    return artefact.folder / "checkpoints" / f"{which}.ckpt"
