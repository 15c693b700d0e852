"""The stages up to the localization maps. Each has a name, needs, a place in the store, and work to do."""

import io
import json
import shutil
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from ribseg.callbacks import MapWriter, Threads, read_records
from ribseg.data.datamodules import SamplesCheck
from ribseg.data.files import atomic_write, scan_folder
from ribseg.data.image_pool import ImagePool, build_pool, image_sizes, pool_bytes
from ribseg.data.references import rng
from ribseg.errors import ConfigError, DataError
from ribseg.models import Classifier, load_official_classifier, read_state_dict
from ribseg.models.backbone import BROKEN
from ribseg.modules import CAMModule, FeatureNormModule, LocalizationModule
from ribseg.pipeline.context import Context, build, plain
from ribseg.pipeline.disk import ImageSizes
from ribseg.pipeline.store import Artefact, file_digest
from ribseg.rate import find_rate
from ribseg.types import Adaptation, Stop

GIB = 1024**3
WEIGHTS, RATE = "classifier.pt", "rate.json"
SPEED = ("reference_chunk", "compile")  # of RIB; they change maps by rounding
TRAINING_DATA = ("crop_size", "resize_long", "batch_size", "mean", "std")


class Stage(ABC):
    """A step of the chain.

    Attributes:
        name: as in `run=[...]`.
        needs: stages whose artefacts it reads.
        reads_data: whether it, or a stage that it needs, reads the configured data set.
    """

    name: str
    needs: ClassVar[tuple[str, ...]] = ()
    reads_data: ClassVar[bool] = True

    def wanted(self, context: Context) -> bool:
        """Whether it has a place in this run; else it is neither run nor reported."""
        return True

    def required(self, context: Context) -> tuple[str, ...]:
        """Names of the stages whose artefacts it reads with these settings."""
        return self.needs

    def inputs(self, context: Context) -> dict[str, Artefact]:
        """The artefacts that it reads."""
        return {name: context.artefacts[name] for name in self.required(context)}

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether a finished artefact still holds what other stages read."""
        return True

    def disk(self, context: Context, sizes: ImageSizes) -> float:
        """Bytes that its files will take; tables count as nothing."""
        return 0.0

    @abstractmethod
    def artefact(self, context: Context) -> Artefact:
        """Its place in the store, from settings and inputs; nothing is computed."""

    @abstractmethod
    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Does what is missing in the artefact's folder and returns facts for its manifest."""


class ClassifierStage(Stage):
    """Trains the classifier, or takes over a released one."""

    name = "classifier"

    def artefact(self, context: Context) -> Artefact:
        """Depends on the training images, their labels, and the recipe."""
        model = context.cfg.classifier.model
        files = {"official_checkpoint": context.cfg.classifier.official_checkpoint, "weights": model.weights}
        settings = context.settings("classifier", "seed") | {
            "data": {key: plain(context.cfg.data[key]) for key in TRAINING_DATA},
            "trainer": context.trainer_settings(),
            "files": {name: file_digest(path) for name, path in files.items() if path},
        }
        return context.store.artefact(self.name, settings, {}, context.data.train.fingerprint(masks=False))

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether the weights are there."""
        return (artefact.folder / WEIGHTS).is_file()

    def disk(self, context: Context, sizes: ImageSizes) -> float:
        """The weights, and a checkpoint where it trains."""
        weights = context.weights[self.name]
        return weights.all + (0 if context.cfg.classifier.official_checkpoint else weights.checkpoint)

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Goes on from the last finished epoch if there is one."""
        official = context.cfg.classifier.official_checkpoint
        if official:
            classifier = load_official_classifier(official)
            save_state(classifier, artefact.folder / WEIGHTS)
            return {"official_checkpoint": Path(official).name}
        pl.seed_everything(context.cfg.seed, workers=True, verbose=False)
        classifier = new_classifier(context)
        module = build(context.cfg.classifier.module, classifier=classifier)
        facts = fit(context, artefact, module, context.cfg.classifier.epochs, context.data)
        if not all(bool(torch.isfinite(weight).all()) for weight in classifier.parameters()):
            raise ConfigError(
                "the classifier's weights are no longer finite: its training has diverged. Lower "
                f"classifier.module.lr={context.cfg.classifier.module.lr}; {artefact.folder} can be deleted"
            )
        context.on_first(lambda: save_state(classifier, artefact.folder / WEIGHTS))
        return facts


class MapStage(Stage):
    """Makes the localization maps of all images; subclasses say how."""

    needs: ClassVar[tuple[str, ...]] = ("classifier",)
    scales: ClassVar[tuple[float, ...] | None] = None  # of the views; None for the configured ones

    def artefact(self, context: Context) -> Artefact:
        """Depends on the classifier, all images and labels, and the stage's own settings."""
        settings = self.settings(context) | {
            "scales": list(context.cfg.data.scales),
            "keep_full": context.cfg.maps.full,
            "trainer": context.trainer_settings(),
        }
        if context.cfg.data.max_side is not None:
            settings["max_side"] = context.cfg.data.max_side
        data = context.data.fingerprint(masks=False)
        return context.store.artefact(self.name, settings, self.inputs(context), data)

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether all maps are there."""
        return not self.missing(context, artefact)

    def disk(self, context: Context, sizes: ImageSizes) -> float:
        """The maps of all images."""
        return sizes.map_files(context.cfg.maps.full)

    def missing(self, context: Context, artefact: Artefact) -> list[str]:
        """Ids of the images that have no maps yet."""
        there = scan_folder(artefact.folder / "maps", (".npz",)) if artefact.folder.is_dir() else {}
        return [image_id for image_id in context.data.all_ids if image_id not in there]

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Makes the maps that are not there yet."""
        missing = context.agree(self.missing(context, artefact))
        if missing:
            number = len(context.data.all_ids)
            if len(missing) < number:
                context.console.print(f"  going on: {number - len(missing)} of {number} images are done")
            module = self.module(context, artefact)
            context.data.predict_ids, context.data.predict_scales = missing, self.scales
            callbacks = [MapWriter(artefact.folder, context.cfg.maps.full), Threads(context.cfg.maps.threads)]
            trainer = context.trainer(self.name, artefact.folder, callbacks, inference_mode=False)
            trainer.predict(module, datamodule=context.data, return_predictions=False)
            context.wait()
            left = self.missing(context, artefact)
            if left:
                raise ConfigError(
                    f"{len(left)} of {number} images still have no maps in {artefact.folder}: does the "
                    "Trainer stop early (trainer.limit_predict_batches, trainer.fast_dev_run)?"
                )
        return summarize(read_records(artefact.folder))

    @abstractmethod
    def settings(self, context: Context) -> dict[str, Any]:
        """What changes the maps, besides classifier and data."""

    @abstractmethod
    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """The LightningModule that makes the maps."""


class CAMStage(MapStage):
    """Plain CAMs: what RIB is compared with."""

    name = "cam"

    def settings(self, context: Context) -> dict[str, Any]:
        """None of its own."""
        return {}

    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """See `CAMModule`."""
        return CAMModule(trained_classifier(context))


class FeatureNormStage(CAMStage):
    """A control, see `ribseg.controls`."""

    name = "feature_norm"

    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """See `FeatureNormModule`."""
        return FeatureNormModule(trained_classifier(context))


class RIBStage(MapStage):
    """RIB on every image."""

    name = "rib"

    def settings(self, context: Context) -> dict[str, Any]:
        """RIB, pooling, and what the reference images look like."""
        settings = context.settings("rib", "pooling", "seed")
        settings["rib"] = {name: value for name, value in settings["rib"].items() if name not in SPEED}
        settings |= {
            "crop_size": context.cfg.data.crop_size,
            "resize_long": list(context.cfg.data.resize_long),
        }
        if context.cfg.rib.lr == "auto":
            settings |= context.settings("rate_search")
        return settings

    def disk(self, context: Context, sizes: ImageSizes) -> float:
        """The maps, and the pool of decoded images where there is to be one."""
        limit, artefact = pool_limit(context), pool_artefact(context)
        pool = sizes.decoded(len(context.data.train)) if limit and not artefact.finished else 0.0
        return super().disk(context, sizes) + (pool if pool <= limit else 0.0)

    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """See `RIBModule`; a rate of "auto" is searched first, once."""
        make = rib_builder(context, trained_classifier(context), reference_pool(context))
        if context.cfg.rib.lr != "auto":
            return make()
        return make(lr=searched_rate(context, make, artefact.folder))


class WrongClassStage(RIBStage):
    """A control, see `ribseg.controls`. Takes RIB's learning rate as it is."""

    name = "wrong_class"
    needs = ("classifier", "rib")

    def disk(self, context: Context, sizes: ImageSizes) -> float:
        """The maps; the pool is RIB's."""
        return MapStage.disk(self, context, sizes)

    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """See `WrongClassModule`."""
        make = rib_builder(context, trained_classifier(context), reference_pool(context))
        extra: dict[str, Any] = {"_target_": "ribseg.modules.WrongClassModule", "seed": context.cfg.seed}
        if context.cfg.rib.lr == "auto":
            extra["lr"] = read_rate(context.artefacts["rib"].folder)
        return make(**extra)


def learning_settings(context: Context, weights: str | None) -> dict[str, Any]:
    """What every training's result depends on besides its recipe and data, for a digest.

    Args:
        context: of the run.
        weights: that it starts from: a file, "classifier" (an input, which has a digest of its own), or None.
    """
    return context.settings("seed") | {
        "mean": plain(context.cfg.data.mean),
        "std": plain(context.cfg.data.std),
        "trainer": context.trainer_settings(),
        "files": {} if weights in (None, "classifier") else {"weights": file_digest(str(weights))},
    }


def new_classifier(context: Context, pretrained: bool | None = None) -> Classifier:
    """The configured classifier for the classes of the data.

    Args:
        context: of the run.
        pretrained: False leaves weights that would be loaded out, for one that gets its own at once.
    """
    extra: dict[str, Any] = {} if pretrained is None else {"pretrained": pretrained, "weights": None}
    return build(context.cfg.classifier.model, num_classes=context.data.num_classes, **extra)


def trained_classifier(context: Context) -> Classifier:
    """The classifier that the classifier stage left."""
    if context.cfg.classifier.official_checkpoint:
        return load_official_classifier(context.cfg.classifier.official_checkpoint)
    classifier = new_classifier(context, pretrained=False)
    path = context.artefacts["classifier"].folder / WEIGHTS
    try:
        classifier.load_state_dict(read_state_dict(path))
    except RuntimeError as error:
        raise ConfigError(f"{path} does not fit the configured classifier: {error}") from error
    return classifier


def fit(
    context: Context,
    artefact: Artefact,
    module: pl.LightningModule,
    epochs: int,
    data: pl.LightningDataModule,
    **kwargs: Any,
) -> dict[str, Any]:
    """Trains a module, from its last finished epoch on if there is one.

    Args:
        context: of the run.
        artefact: gets the checkpoints.
        module: what is trained.
        epochs: in all.
        data: the batches of training and validation.
        kwargs: settings of the Trainer.

    Returns:
        The last metrics.
    """
    checkpoints = artefact.folder / "checkpoints"
    keep = ModelCheckpoint(checkpoints, filename="last", save_top_k=1, enable_version_counter=False)
    trainer = context.trainer(
        artefact.stage, artefact.folder, [keep, SamplesCheck()], max_epochs=epochs, **kwargs
    )
    last = checkpoints / "last.ckpt"
    resume = context.agree(str(last) if readable(last, context) else None)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def readable(checkpoint: Path, context: Context) -> bool:
    """Whether there is a checkpoint to go on from; one that a kill left torn is passed over, and said so."""
    if not checkpoint.is_file():
        return False
    try:
        return "pytorch-lightning_version" in torch.load(checkpoint, map_location="cpu", weights_only=True)
    except BROKEN as error:
        context.console.print(f"  {checkpoint} cannot be read ({type(error).__name__}); training starts anew")
        return False


def save_state(module: nn.Module, path: Path) -> None:
    """Writes a module's weights atomically."""
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in module.state_dict().items()}, buffer)
    atomic_write(path, buffer.getvalue())


def rib_builder(
    context: Context, classifier: Classifier, pool: ImagePool | None = None
) -> Callable[..., LocalizationModule]:
    """Makes the configured RIB module; keyword arguments replace settings."""
    cfg = context.cfg

    def make(**replaced: Any) -> LocalizationModule:
        number = cfg.rib.references
        on_gpu = cfg.maps.crop_on_gpu
        references = context.data.references(number, pool=pool, on_device=on_gpu) if number else None
        pooling = build(cfg.pooling)
        parts = {"classifier": classifier, "pooling": pooling, "references": references}
        return build(cfg.rib, **(parts | replaced))

    return make


def reference_pool(context: Context) -> ImagePool | None:
    """The training images, decoded, in the store; None where there are too many, or nothing is drawn."""
    limit, train, artefact = pool_limit(context), context.data.train, pool_artefact(context)
    if not limit:
        return None
    if not artefact.finished and (context.is_first or not dist.is_initialized()):
        sizes = image_sizes(train)
        need, free = pool_bytes(sizes), shutil.disk_usage(context.store.root).free
        reason = "maps.pool_gib allows" if need > limit else "the store's disk has" if need > free else None
        amount = f"{len(train)} decoded training images for RIB's references: {need / GIB:.2f} GiB"
        if reason:
            context.console.print(
                f"  {amount}; {reason} {min(limit, free) / GIB:.2f}: decoding at each draw instead"
            )
        else:
            context.console.print(f"  {amount} in {artefact.folder}")
            start = time.perf_counter()
            build_pool(artefact.folder, train, sizes, progress=context.cfg.progress)
            artefact.finish({"images": len(train), "bytes": need}, time.perf_counter() - start)
    context.wait()
    return ImagePool(artefact.folder) if artefact.finished else None


def pool_limit(context: Context) -> float:
    """Bytes that a pool of decoded images may have; 0 if there is to be none."""
    return context.cfg.maps.pool_gib * GIB if context.cfg.rib.references else 0.0


def pool_artefact(context: Context) -> Artefact:
    """Where the pool lies in the store."""
    return context.store.artefact("pool", {}, {}, context.data.train.fingerprint(masks=False))


def searched_rate(context: Context, make: Callable[..., LocalizationModule], folder: Path) -> float:
    """The learning rate that `find_rate` chose; searched once, then read."""
    if not (folder / RATE).is_file() and (context.is_first or not dist.is_initialized()):
        settings = context.cfg.rate_search
        labelled = context.data.train.labels.any(1).nonzero()[0]
        chosen = rng(context.cfg.seed, "rate").permutation(labelled)[: settings.images]
        items = [context.data.predict_dataset([context.data.train.ids[i]])[0] for i in chosen]
        context.console.print(f"  searching the learning rate on {len(items)} training images")
        adapt = partial(adapt_all, make, items, device_of(context))
        found = find_rate(adapt, settings.low, settings.high, settings.completed)
        for trial in found.trials:
            context.console.print(f"    lr {trial.lr:<8g} {trial.completed:.0%} of the images took all steps")
        context.console.print(f"  lr {found.lr:g} is taken")
        rates = {"lr": found.lr, "trials": [trial._asdict() for trial in found.trials]}
        atomic_write(folder / RATE, json.dumps(rates, indent=2).encode())
    context.wait()
    return read_rate(folder)


def adapt_all(
    make: Callable[..., LocalizationModule], items: list[dict[str, Any]], device: torch.device, lr: float
) -> list[Adaptation]:
    """Adapts to a few images at one learning rate."""
    module = make(lr=lr).to(device)
    return [module.localize(item["id"], item["views"], item["labels"]) for item in items]


def device_of(context: Context) -> torch.device:
    """Where the configured Trainer computes."""
    return build(context.cfg.trainer, logger=False).strategy.root_device


def read_rate(folder: Path) -> float:
    """The rate in a stage's folder."""
    try:
        return float(json.loads((folder / RATE).read_text())["lr"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / RATE} holds no learning rate ({error}); delete {folder}, run again"
        ) from error


def summarize(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over the images of a map stage: as "adaptation" in `results.json`.

    Images without a class are not adapted; they count in "images" only.
    """
    adapted = [record for record in records.values() if record["classes"] > 0]
    stopped = Counter(record["stopped"] for record in adapted)
    number = max(len(adapted), 1)
    return {
        "images": len(records),
        "without_class": len(records) - len(adapted),
        "steps_mean": sum(record["steps"] for record in adapted) / number,
        "stopped": {rule: stopped[rule] for rule in get_args(Stop)},
        "seconds_per_image": sum(record["seconds"] for record in adapted) / number,
    }
