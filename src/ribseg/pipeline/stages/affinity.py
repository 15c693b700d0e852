"""The affinity stages: confident labels, training, random walk (docs/method.md, section 5)."""

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
from omegaconf import OmegaConf

from ribseg.data.augment.segmentation import (
    Reader,
    SegmentationDataset,
    segmentation_eval_transform,
    segmentation_train_transform,
)
from ribseg.data.io.maps import load_maps, map_path
from ribseg.data.io.masks import read_mask, write_mask
from ribseg.errors import ConfigError
from ribseg.functional import dense_crf
from ribseg.methods.refine import confident_labels
from ribseg.models import Backbone, IRNet, PSANet, load_weights, read_state_dict
from ribseg.modules.segmentation_data import CropDataModule
from ribseg.modules.walk import RandomWalkModule
from ribseg.pipeline.recipe.build import build
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.parts import takes
from ribseg.pipeline.recipe.training import fit, save_state
from ribseg.pipeline.recipe.workers import Job, run_pool
from ribseg.pipeline.stages.chains import RefinementStage
from ribseg.pipeline.stages.classifier import trained_classifier
from ribseg.pipeline.stages.maps import MapStage
from ribseg.pipeline.stages.thresholds import SCORES_ONLY, all_images, choose_threshold, needs_masks
from ribseg.store.artefact import Artefact
from ribseg.store.digest import plain
from ribseg.store.stage import CROPS, NOT_FOR_MAPS, TRAINING, VIEWS

WEIGHTS = "affinity.pt"
MARGINS = {"foreground": 0.125, "background": -0.1}  # of "auto", added to the background score of the maps
# Settings of `refine` that neither the confident labels nor the walk depend on.
MASKS = (
    *("refine.variants", "refine.walk_threshold", "refine.attention_threshold", "refine.segments"),
    *("refine.saliency", "refine.saliency_threshold", "refine.crf_unary"),
)
AFTER_LABELS = ("refine.walk", "refine.attention", "refine.pixel_adaptive", *MASKS)
NOT_FOR_WALK = (
    *("refine.labels", "refine.attention", "refine.maps_threshold", "refine.crf", "refine.pixel_adaptive"),
    *MASKS,
)


class AffinityLabelsStage(RefinementStage):
    """Makes the confident labels that the affinity network is trained on."""

    kind = "affinity_labels"
    parts = ("refine", "evaluate", "data")
    in_shards: ClassVar[bool] = True
    neutral = (*AFTER_LABELS, *SCORES_ONLY, *CROPS, *VIEWS, "data.batch_size", "data.mean", "data.std")

    def required(self, context: Context) -> tuple[str, ...]:
        """The maps."""
        return (self.chain.maps,)

    def settings(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of "auto" scores and of the CRF count only if they are used."""
        settings = super().settings(cfg)
        if "auto" not in settings["refine"]["labels"].values():
            del settings["evaluate"], settings["refine"]["maps_threshold"]
            settings["data"].pop("eval_splits", None)
        if not settings["refine"]["labels"].get("crf"):
            del settings["refine"]["crf"]
        return settings

    def data(self, context: Context) -> str:
        """All images; the masks if a score is chosen on them."""
        refine = context.cfg.refine
        automatic = "auto" in plain(refine.labels).values()
        return all_images(context, masks=automatic and needs_masks(refine.maps_threshold))

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Labels the images without a label file, in a process pool of the first process."""
        scores = {"foreground": 0.0, "background": 0.0}

        def label() -> None:
            scores.update(confidence(context, self.chain.maps))
            source, folder = context.artefacts[self.chain.maps].folder, context.data.pseudo
            crf = plain(context.cfg.refine.crf) if context.cfg.refine.labels.crf else None
            work = partial(write_confident_labels, folder.image, scores, crf)
            jobs = [(i, map_path(source, i), label_path(artefact.folder, i)) for i in folder.ids]
            run_pool(context, work, jobs, "Confident labels")

        context.on_first(label)
        return dict(scores)


class AffinityStage(RefinementStage):
    """Trains IRNet, or PSA's network, on the confident labels."""

    kind = "affinity"
    parts = ("affinity", "callbacks", *TRAINING)
    neutral = (*CROPS, *VIEWS, *NOT_FOR_MAPS)

    def required(self, context: Context) -> tuple[str, ...]:
        """The confident labels, and the classifier if its backbone is used."""
        return (*shared_classifier(context), self.chain.name("affinity_labels"))

    def data(self, context: Context) -> str:
        """The training images."""
        return context.data.pseudo.fingerprint(masks=False)

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether the weights exist."""
        return (artefact.folder / WEIGHTS).is_file()

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Trains the network and saves it."""
        cfg = context.cfg.affinity
        pl.seed_everything(context.cfg.seed, workers=True, verbose=False)
        network = new_network(context)
        module = new_training(context, network)
        # The validation after the last epoch measures the mean displacement.
        facts = fit(
            context,
            artefact,
            "affinity",
            module,
            cfg.epochs,
            affinity_data(context, context.artefacts[self.chain.name("affinity_labels")].folder),
            check_val_every_n_epoch=cfg.epochs,
        )
        context.on_first(lambda: save_state(network, artefact.folder / WEIGHTS))
        return facts


class RandomWalkStage(RefinementStage, MapStage):
    """Propagates the maps of all images by a random walk over the predicted affinities."""

    kind = "random_walk"
    parts = ("refine", "affinity", *MapStage.parts)
    neutral = (*NOT_FOR_WALK, *CROPS, "data.scales", *NOT_FOR_MAPS)
    scales: ClassVar[tuple[float, ...] | None] = (1.0,)

    def required(self, context: Context) -> tuple[str, ...]:
        """The maps, the affinity network, and the classifier if its backbone is used."""
        return (self.chain.maps, *shared_classifier(context), self.chain.name("affinity"))

    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """The `RandomWalkModule`."""
        network = new_network(context)
        network.load_state_dict(
            read_state_dict(context.artefacts[self.chain.name("affinity")].folder / WEIGHTS)
        )
        source = context.artefacts[self.chain.maps].folder
        return RandomWalkModule(
            network,
            lambda image_id: load_maps(map_path(source, image_id)),
            context.cfg.affinity.crop_size,
            **plain(context.cfg.refine.walk),
        )


def confidence(context: Context, maps: str) -> dict[str, float]:
    """The background scores, "foreground" and "background", for the confident labels of a stage's maps."""
    labels = context.cfg.refine.labels
    scores = {name: labels[name] for name in MARGINS}
    if "auto" in scores.values():
        best = choose_threshold(context, maps, context.cfg.refine.maps_threshold)
        scores = {
            name: min(max(best + MARGINS[name], 0.01), 0.99) if value == "auto" else value
            for name, value in scores.items()
        }
    return {name: float(value) for name, value in scores.items()}


def new_network(context: Context, backbone: Backbone | None = None) -> IRNet | PSANet:
    """The configured affinity network.

    Args:
        context: of the run.
        backbone: replaces the configured one. A network of the user's own need not take one.
    """
    cfg = context.cfg.affinity
    if not takes(cfg.network, "backbone"):
        return build(cfg.network)
    return build(cfg.network, backbone=new_backbone(context) if backbone is None else backbone)


def new_training(context: Context, network: IRNet | PSANet) -> pl.LightningModule:
    """The configured module that trains the network.

    Raises:
        ConfigError: the crops are too small for the pixel pairs of the loss.
    """
    cfg = context.cfg.affinity
    module = build(cfg.module, network=network)
    smallest = getattr(module, "smallest_crop", 1)
    if cfg.crop_size < smallest:
        raise ConfigError(
            f"expected affinity.crop_size of at least {smallest // module.radius} * affinity.module.radius = "
            f"{smallest} pixels, got {cfg.crop_size}"
        )
    return module


def backbone_weights(context: Context) -> str | None:
    """The setting affinity.backbone.weights; None without it."""
    return OmegaConf.select(context.cfg, "affinity.backbone.weights")


def new_backbone(context: Context) -> Backbone:
    """The configured backbone of the affinity network, with its weights."""
    cfg = context.cfg.affinity.backbone
    if cfg.weights == "classifier":
        return copy.deepcopy(trained_classifier(context).backbone)
    backbone = Backbone(cfg.name, cfg.pretrained, cfg.output_stride, kwargs=plain(cfg.kwargs))
    if cfg.weights is not None:
        load_weights(backbone, cfg.weights)
    return backbone


def shared_classifier(context: Context) -> tuple[str, ...]:
    """("classifier",) if the affinity network uses the classifier's backbone; else ()."""
    cfg = context.cfg.affinity
    shared = takes(cfg.network, "backbone") and cfg.backbone.weights == "classifier"
    return ("classifier",) if shared else ()


def affinity_data(context: Context, labels: Path) -> CropDataModule:
    """Augmented crops with confident labels for training; plain crops to measure the mean displacement.

    Args:
        context: of the run.
        labels: folder of the stage affinity_labels.
    """
    cfg, data = context.cfg.affinity, context.data
    augmented = segmentation_train_transform(cfg.crop_size, plain(cfg.scale), data.mean, data.std)
    middle = segmentation_eval_transform(cfg.crop_size, data.mean, data.std)
    train, val = (
        SegmentationDataset(data.pseudo.ids, data.pseudo.image, partial(read_labels, labels), transform)
        for transform in (augmented, middle)
    )
    return CropDataModule(
        train, val, cfg.batch_size, data.num_workers, context.cfg.seed, "affinity.batch_size"
    )


def label_path(folder: Path, image_id: str) -> Path:
    """The file of an image's confident labels."""
    return folder / "labels" / f"{image_id}.png"


def read_labels(folder: Path, image_id: str) -> np.ndarray:
    """The confident labels of an image: (H, W) uint8."""
    return read_mask(label_path(folder, image_id))


def write_confident_labels(
    read_image: Reader, scores: dict[str, float], crf: dict[str, Any] | None, job: Job
) -> None:
    """Computes and writes the confident labels of one image."""
    image_id, maps, target = job
    refine = None if crf is None else partial(dense_crf, **crf)
    write_mask(target, confident_labels(read_image(image_id), load_maps(maps), **scores, crf=refine))
