"""The training of a segmenter on pseudo masks, or fully supervised (docs/method.md, section 6)."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import nn

from ribseg.checks import within
from ribseg.data.augment.segmentation import (
    Reader,
    SegmentationDataset,
    segmentation_train_transform,
    whole_image_transform,
)
from ribseg.data.base import BaseDataset
from ribseg.data.io.masks import voc_palette
from ribseg.errors import ConfigError
from ribseg.models import Classifier, Segmenter
from ribseg.modules.callbacks import MovingAverage
from ribseg.modules.segmentation_data import SegmentationDataModule
from ribseg.pipeline.recipe.build import build, named_callbacks
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.parts import check_training, takes
from ribseg.pipeline.recipe.training import check_finite, fit_from, weights_file
from ribseg.pipeline.stages.chains import FULL, active_sources, masks_stage, segmenter_name
from ribseg.pipeline.stages.classifier import given_checkpoint, new_classifier, trained_classifier
from ribseg.pipeline.stages.pseudo_masks import read_pseudo_mask
from ribseg.store.artefact import Artefact
from ribseg.store.digest import plain
from ribseg.store.stage import CROPS, TRAINING, VIEWS, Stage

WEIGHTS = "segmenter"  # file name, without extension


class SegmenterStage(Stage):
    """Trains a segmenter.

    Args:
        source: the stage whose maps gave the pseudo masks to learn from, or "full" for the ground truth.
    """

    parts = ("segmenter", "callbacks", *TRAINING)
    neutral = (*CROPS, *VIEWS, "data.batch_size")

    def __init__(self, source: str) -> None:
        self.source, self.name = source, segmenter_name(source)
        self.kind = self.name

    def wanted(self, context: Context) -> bool:
        """Whether the run trains or reports it."""
        return self.source in active_sources(context.cfg)

    def required(self, context: Context) -> tuple[str, ...]:
        """The pseudo masks, and the classifier if its backbone is the initialization."""
        masks = () if self.source == FULL else (masks_stage(context.cfg, self.source),)
        starts = ("classifier",) if context.cfg.segmenter.model.get("weights") == "classifier" else ()
        return (*masks, *starts)

    def settings(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of the validation count only if it decides: with select=best, or with callbacks."""
        settings = super().settings(cfg)
        segmenter = settings["segmenter"]
        if not validation_decides(cfg):
            for name in ("check_every", "splits", "test"):
                segmenter.pop(name, None)
            settings["data"].pop("eval_splits", None)
        return settings

    def data(self, context: Context) -> str:
        """The images and masks for training, and those of the validation if it decides."""
        data = training_folder(context, self.source).fingerprint(masks=self.source == FULL)
        watch = validation_folder(context)
        if watch is not None and validation_decides(context.cfg):
            data += watch.fingerprint(masks=True)
        return data

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether the weights exist."""
        return weights_file(artefact, WEIGHTS).is_file()

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Trains, resuming from the last checkpoint, and saves the last or the best weights."""
        cfg = context.cfg.segmenter
        pl.seed_everything(context.cfg.seed, workers=True, verbose=False)
        model = new_segmenter(context)
        # Validation tiles images as the test does; a module of the user's own need not.
        tiles = {name: cfg.test[name] for name in ("tile", "margin") if takes(cfg.module, name)}
        module = build(cfg.module, model=model, **tiles)
        facts = train(context, artefact, module, segmentation_data(context, self.source))
        chosen = torch.load(checkpoint(artefact, cfg.select), map_location="cpu", weights_only=True)
        prefix = "model."
        state = {k.removeprefix(prefix): v for k, v in chosen["state_dict"].items() if k.startswith(prefix)}
        check_finite(artefact, state.values(), "segmenter.module.lr", cfg.module.get("lr"))
        model.load_state_dict(state)
        context.on_first(lambda: described(context, model).save(weights_file(artefact, WEIGHTS)))
        return facts | {"selected": cfg.select, "selected_at": chosen["global_step"]}


def validation_decides(cfg: Mapping[str, Any]) -> bool:
    """Whether the resulting weights depend on validation scores."""
    return cfg["segmenter"]["select"] == "best" or bool(named_callbacks(cfg, "segmenter"))


def training_folder(context: Context, source: str) -> BaseDataset:
    """The training images; for "full" with the masks of segmenter.masks_dir, if set."""
    if source == FULL and context.cfg.segmenter.masks_dir is not None:
        return context.data.pseudo.with_masks(context.cfg.segmenter.masks_dir)
    return context.data.pseudo


def tested_folders(context: Context) -> dict[str, BaseDataset]:
    """Split -> images and masks of the test.

    Raises:
        ConfigError: there is none, or one is not in data.eval_splits.
    """
    known = context.data.evals
    chosen = context.cfg.segmenter.splits
    splits = list(known)[-1:] if chosen is None else list(chosen)
    if not splits or not set(splits) <= set(known):
        raise ConfigError(
            f"expected segmenter.splits=[...] with some of data.eval_splits={list(known)}, got {splits}; "
            "without masks name the training alone: run=[...,segmenter_rib]"
        )
    return {split: known[split] for split in splits}


def validation_folder(context: Context) -> BaseDataset | None:
    """The validation set: the first tested split; None with validate=false or without masks."""
    if not context.cfg.segmenter.validate or not context.data.eval_splits:
        return None
    return next(iter(tested_folders(context).values()))


def new_segmenter(context: Context, classifier: Classifier | None = None) -> nn.Module:
    """The configured network for the classes of the data, with its initial weights.

    Args:
        context: of the run.
        classifier: gives the backbone with `segmenter.model.weights=classifier`; None for that of the
            classifier stage.
    """
    cfg = context.cfg.segmenter.model
    shared = cfg.get("weights") == "classifier"
    extra = {"weights": None} if shared else {}
    # Plain values, because they go into the segmenter's file.
    model = build(cfg, num_classes=context.data.num_classes + 1, _convert_="all", **extra)
    if shared:
        take_backbone(model, trained_classifier(context) if classifier is None else classifier)
    return model


def take_backbone(model: Any, classifier: Classifier) -> None:
    """Copies the weights of the classifier's backbone into the segmenter.

    Raises:
        ConfigError: the segmenter has another backbone.
    """
    try:
        model.backbone.load_state_dict(classifier.backbone.state_dict())
    except (AttributeError, RuntimeError) as error:
        raise ConfigError(
            "segmenter.model.weights=classifier needs a DeepLab-v2 over the classifier's backbone; set "
            "segmenter.model.backbone and backbone_kwargs to those of classifier.model, or give it "
            f"weights of its own: {error}"
        ) from error


def described(context: Context, model: nn.Module) -> Segmenter:
    """The segmenter: a network with classes, normalization, palette and inference settings."""
    data, test = context.data, plain(context.cfg.segmenter.test)
    return Segmenter(model, data.classes, data.mean, data.std, voc_palette(), test)


def masks_of(context: Context, source: str) -> Reader:
    """The function that reads the training mask of an image id."""
    if source == FULL:
        return training_folder(context, source).mask
    stage = context.artefacts[masks_stage(context.cfg, source)]
    return partial(read_pseudo_mask, stage.folder, context.cfg.refine.variants[-1], context.data.num_classes)


def segmentation_data(context: Context, source: str) -> SegmentationDataModule:
    """Training crops, and whole images for the validation if there is one."""
    cfg, data = context.cfg.segmenter, context.data
    transform = segmentation_train_transform(cfg.crop_size, plain(cfg.scale), data.mean, data.std)
    train = SegmentationDataset(data.pseudo.ids, data.pseudo.image, masks_of(context, source), transform)
    val, folder = None, validation_folder(context)
    if folder is not None:
        val = SegmentationDataset(
            folder.ids, folder.image, folder.mask, whole_image_transform(data.mean, data.std)
        )
    return SegmentationDataModule(
        train, val, cfg.batch_size, cfg.accumulate, data.num_workers, context.cfg.seed
    )


def checkpoint(artefact: Artefact, which: str) -> Path:
    """The file of the "last" or the "best" checkpoint."""
    return artefact.folder / "checkpoints" / f"{which}.ckpt"


def train(
    context: Context, artefact: Artefact, module: pl.LightningModule, data: SegmentationDataModule
) -> dict[str, Any]:
    """Trains for the configured number of iterations, resuming from the last checkpoint; returns metrics."""
    cfg = context.cfg.segmenter
    trainer = context.trainer(
        artefact.stage,
        artefact.folder,
        training_callbacks(context, artefact, validates=data.val is not None),
        max_steps=cfg.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=cfg.accumulate,
        sync_batchnorm=cfg.sync_batchnorm or context.cfg.trainer.get("sync_batchnorm", False),
        precision=cfg.precision or context.cfg.trainer.precision,
        use_distributed_sampler=False,  # the batches are divided among processes already
        check_val_every_n_epoch=None,
        val_check_interval=cfg.check_every * cfg.accumulate,
        limit_val_batches=None if data.val is not None else 0,
    )
    metrics = fit_from(context, trainer, module, data, checkpoint(artefact, "last"))
    stopped = trainer.should_stop and bool(context.callbacks("segmenter"))  # by one of the user's callbacks
    if trainer.global_step < cfg.max_steps and not stopped:
        raise ConfigError(
            f"{artefact.stage} stopped at iteration {trainer.global_step} of {cfg.max_steps}: does the "
            "Trainer stop early (trainer.max_time, trainer.limit_train_batches, trainer.fast_dev_run)?"
        )
    return metrics


def training_callbacks(context: Context, artefact: Artefact, validates: bool) -> list[Callback]:
    """Callbacks for the last checkpoint, the best one with validation, the moving average, and the user's."""
    cfg = context.cfg.segmenter
    folder = artefact.folder / "checkpoints"
    # With validation the last checkpoint is saved after it, so that a resumed training has the same state.
    every = None if validates else cfg.check_every
    common: dict[str, Any] = {"save_top_k": 1, "enable_version_counter": False}
    callbacks: list[Callback] = []
    if validates:
        # Before the last checkpoint, which must contain the best score so far.
        callbacks.append(ModelCheckpoint(folder, "best", monitor="val/miou", mode="max", **common))
    callbacks.append(ModelCheckpoint(folder, filename="last", every_n_train_steps=every, **common))
    if cfg.average is not None:
        callbacks.append(MovingAverage(decay=cfg.average))
    return [*callbacks, *context.callbacks("segmenter").values()]


def check_segmenter(context: Context, source: str) -> None:
    """Checks settings and data of a segmenter before any training.

    Raises:
        RibsegError: a setting cannot work, or masks are missing.
    """
    check_schedule(context)
    if source == FULL:
        check_full(context)
    if context.is_ready(segmenter_name(source)):
        return
    cfg = context.cfg.segmenter
    # The classifier may not be trained yet, but an untrained one has the same shapes.
    given = given_checkpoint(context)
    classifier = trained_classifier(context) if given else new_classifier(context, pretrained=False)
    with within("segmenter.model"):
        model = new_segmenter(context, classifier)
    check_training("segmenter.module", cfg.module, model=model)
    with within("segmenter.precision"):
        build(context.cfg.trainer, logger=False, precision=cfg.precision or context.cfg.trainer.precision)
    segmentation_data(context, source).check(context.processes)


def check_schedule(context: Context) -> None:
    """Raises a ConfigError if steps, checkpoints and validation of the training do not fit together."""
    cfg = context.cfg.segmenter
    if cfg.max_steps % cfg.check_every:
        raise ConfigError(
            f"expected segmenter.max_steps={cfg.max_steps} as a multiple of segmenter.check_every="
            f"{cfg.check_every}, so that the last checkpoint is the end of the training"
        )
    if cfg.select not in ("last", "best") or (cfg.select == "best" and validation_folder(context) is None):
        raise ConfigError(
            f"expected segmenter.select=last, or best with segmenter.validate=true and data.eval_splits with "
            f"masks; got {cfg.select} with validate={cfg.validate}"
        )


def check_full(context: Context) -> None:
    """Raises a ConfigError if training images have no mask, which the fully supervised segmenter needs."""
    folder = training_folder(context, FULL)
    absent = [image_id for image_id in folder.ids if not folder.has_mask(image_id)]
    if absent:
        raise ConfigError(
            f"segmenter.sources=[full] learns from the ground truth, but {len(absent)} of {len(folder)} "
            f"training images of {folder.origin} have no mask, first {absent[:3]}; name the folder "
            "that has all of them with segmenter.masks_dir (VOC: SegmentationClassAug)"
        )
