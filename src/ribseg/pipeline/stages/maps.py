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

from ribseg.checks import SettingError, check_number
from ribseg.data.feed.image_pool import ImagePool, build_pool, image_sizes, pool_bytes
from ribseg.data.feed.references import ReferenceBatches
from ribseg.data.io.files import atomic_write, scan_folder
from ribseg.data.io.maps import read_records
from ribseg.errors import ConfigError, DataError
from ribseg.functional.random import rng
from ribseg.methods.rate import check_search, find_rate
from ribseg.models import Classifier, load_classifier, load_official_classifier
from ribseg.models.weights import BROKEN
from ribseg.modules import CAMModule, FeatureNormModule, LocalizationModule, RIBModule, WrongClassModule
from ribseg.modules.callbacks import MapWriter, Threads
from ribseg.modules.epoch_data import SamplesCheck
from ribseg.pipeline.engine.context import Context, build, named_callbacks
from ribseg.pipeline.engine.digest import settings_of
from ribseg.pipeline.engine.disk import ImageSizes
from ribseg.pipeline.engine.parts import takes
from ribseg.pipeline.engine.store import Artefact
from ribseg.types import Adaptation, PredictItem, Stop

GIB = 1024**3
CHECKPOINTS = ("checkpoint", "official_checkpoint")  # settings that name a trained classifier
WEIGHTS, RATE = "classifier.pt", "rate.json"
# Parts of the configuration that every training depends on, besides its own and `callbacks`.
TRAINING = ("data", "trainer", "seed", "tf32")
# Settings of the data that are about crops to learn from, about views, and about batches and scores.
CROPS, VIEWS = ("data.crop_size", "data.resize_long"), ("data.scales", "data.max_side")
NOT_FOR_MAPS = ("data.batch_size", "data.eval_splits")


class Stage(ABC):
    """A step of the chain.

    Attributes:
        name: as in `run=[...]`.
        version: raise it when a change of the code makes the result differ for equal settings.
        parts: of the configuration, on which the result depends; see `ribseg.pipeline.engine.digest`.
        neutral: settings in them that cannot change the result, as "data.batch_size".
        needs: stages whose artefacts it reads.
        reads_data: whether it, or a stage that it needs, reads the configured data set.
    """

    name: str
    version: int = 1
    parts: tuple[str, ...]
    neutral: tuple[str, ...] = ()
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

    def settings(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """What of the configuration its result depends on, as plain values."""
        return settings_of(cfg, self.parts, self.neutral)

    @abstractmethod
    def data(self, context: Context) -> str:
        """Fingerprint of the images, labels and masks that it reads."""

    def artefact(self, context: Context) -> Artefact:
        """Its place in the store, from version, settings, inputs and data; nothing is computed."""
        settings, inputs = self.settings(context.cfg), self.inputs(context)
        return context.store.artefact(self.name, settings, inputs, self.data(context), self.version)

    @abstractmethod
    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Does what is missing in the artefact's folder and returns facts for its manifest."""


class ClassifierStage(Stage):
    """Trains the classifier, or takes over a released one."""

    name = "classifier"
    parts = ("classifier", "callbacks", *TRAINING)
    neutral = (*VIEWS, "data.eval_splits")

    def data(self, context: Context) -> str:
        """The training images and labels; with callbacks the others, too, as they may act on their scores."""
        acting = named_callbacks(context.cfg, self.name)
        return (context.data if acting else context.data.train).fingerprint(masks=False)

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether the weights are there."""
        return (artefact.folder / WEIGHTS).is_file()

    def disk(self, context: Context, sizes: ImageSizes) -> float:
        """The weights, and a checkpoint where it trains."""
        weights = context.weights[self.name]
        return weights.all + (0 if given_checkpoint(context) else weights.checkpoint)

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Goes on from the last finished epoch if there is one."""
        given = given_checkpoint(context)
        if given:
            classifier, left_out = loaded_checkpoint(context)
            context.on_first(lambda: save_state(classifier, artefact.folder / WEIGHTS))
            return {given: Path(context.cfg.classifier[given]).name, "left_out": left_out}
        pl.seed_everything(context.cfg.seed, workers=True, verbose=False)
        classifier = new_classifier(context)
        module = build(context.cfg.classifier.module, classifier=classifier)
        facts = fit(context, artefact, self.name, module, context.cfg.classifier.epochs, context.data)
        if not all(bool(torch.isfinite(weight).all()) for weight in classifier.parameters()):
            raise ConfigError(
                "the classifier's weights are no longer finite: its training has diverged. Lower "
                f"classifier.module.lr={context.cfg.classifier.module.get('lr')}; {artefact.folder} can be "
                "deleted"
            )
        context.on_first(lambda: save_state(classifier, artefact.folder / WEIGHTS))
        return facts


class MapStage(Stage):
    """Makes the localization maps of all images; subclasses say how."""

    parts: tuple[str, ...] = ("data", "maps", "trainer", "tf32")
    neutral: tuple[str, ...] = (*CROPS, *NOT_FOR_MAPS)
    needs: ClassVar[tuple[str, ...]] = ("classifier",)
    scales: ClassVar[tuple[float, ...] | None] = None  # of the views; None for the configured ones

    def data(self, context: Context) -> str:
        """All images and labels."""
        return context.data.fingerprint(masks=False)

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether all maps are there."""
        return not self.missing(context, artefact)

    def disk(self, context: Context, sizes: ImageSizes) -> float:
        """The maps of all images."""
        return sizes.map_files(context.cfg.maps.full)

    def missing(self, context: Context, artefact: Artefact) -> list[str]:
        """Ids of the images that have no maps yet."""
        folder = artefact.folder / "maps"
        there = scan_folder(folder, (".npz",)) if folder.is_dir() else {}
        return [image_id for image_id in context.data.all_ids if image_id not in there]

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Makes the maps that are not there yet."""
        missing = context.agree(self.missing(context, artefact))
        if missing:
            number = len(context.data.all_ids)
            if len(missing) < number:
                context.console.print(f"  going on: {number - len(missing)} of {number} images are done")
            module = self.module(context, artefact)
            callbacks = [MapWriter(artefact.folder, context.cfg.maps.full), Threads(context.cfg.maps.threads)]
            trainer = context.trainer(self.name, artefact.folder, callbacks, inference_mode=False)
            loader = context.data.prediction_loader(missing, self.scales, context.processes)
            trainer.predict(module, loader, return_predictions=False)
            context.wait()
            left = self.missing(context, artefact)
            if left:
                raise ConfigError(
                    f"{len(left)} of {number} images still have no maps in {artefact.folder}: does the "
                    "Trainer stop early (trainer.limit_predict_batches, trainer.fast_dev_run)?"
                )
        return summarize(read_records(artefact.folder))

    @abstractmethod
    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """The LightningModule that makes the maps."""


class CAMStage(MapStage):
    """Plain CAMs: what RIB is compared with."""

    name = "cam"

    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """See `CAMModule`."""
        return CAMModule(trained_classifier(context))


class FeatureNormStage(CAMStage):
    """A control, see `ribseg.methods.controls`."""

    name = "feature_norm"

    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """See `FeatureNormModule`."""
        return FeatureNormModule(trained_classifier(context))


class RIBStage(MapStage):
    """RIB on every image."""

    name = "rib"
    parts = ("rib", "pooling", "rate_search", "seed", *MapStage.parts)
    neutral = NOT_FOR_MAPS  # reference images are cropped as in training

    def settings(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """The search for a learning rate counts only where there is one."""
        settings = super().settings(cfg)
        if settings["rib"].get("lr") != "auto":
            del settings["rate_search"]
        return settings

    def disk(self, context: Context, sizes: ImageSizes) -> float:
        """The maps, and the pool of decoded images where there is to be one."""
        limit, artefact = pool_limit(context), pool_artefact(context)
        pool = sizes.decoded(len(context.data.train)) if limit and not artefact.finished else 0.0
        return super().disk(context, sizes) + (pool if pool <= limit else 0.0)

    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """See `RIBModule`; a rate of "auto" is searched first, once."""
        make = rib_builder(context, trained_classifier(context), reference_pool(context))
        if not searches_rate(context):
            return make()
        return make(lr=searched_rate(context, make, artefact.folder))


class WrongClassStage(RIBStage):
    """A control, see `ribseg.methods.controls`. Takes RIB's learning rate as it is."""

    name = "wrong_class"
    needs = ("classifier", "rib")

    def disk(self, context: Context, sizes: ImageSizes) -> float:
        """The maps; the pool is RIB's."""
        return MapStage.disk(self, context, sizes)

    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """See `WrongClassModule`."""
        make = rib_builder(context, trained_classifier(context), reference_pool(context))
        rate = {"lr": read_rate(context.artefacts["rib"].folder)} if searches_rate(context) else {}
        return WrongClassModule(make(**rate), context.cfg.seed)


def searches_rate(context: Context) -> bool:
    """Whether RIB's learning rate is to be searched."""
    return context.cfg.rib.get("lr") == "auto"


def new_classifier(context: Context, pretrained: bool | None = None) -> Classifier:
    """The configured classifier for the classes of the data.

    Args:
        context: of the run.
        pretrained: False leaves weights that would be loaded out, for one that gets its own at once.
    """
    cfg = context.cfg.classifier.model
    known = {"pretrained": pretrained, "weights": None}
    # A network of the user's own need not have such settings.
    extra = {} if pretrained is None else {name: known[name] for name in known if name in cfg}
    return build(cfg, num_classes=context.data.num_classes, **extra)


def trained_classifier(context: Context) -> Classifier:
    """The classifier that the classifier stage left."""
    if given_checkpoint(context):
        return loaded_checkpoint(context)[0]
    classifier = new_classifier(context, pretrained=False)
    load_classifier(classifier, context.artefacts["classifier"].folder / WEIGHTS)
    return classifier


def given_checkpoint(context: Context) -> str | None:
    """The setting that names a classifier which is taken instead of training; None where none does.

    Raises:
        ConfigError: both do.
    """
    given = [name for name in CHECKPOINTS if context.cfg.classifier.get(name)]
    if len(given) > 1:
        raise ConfigError(f"classifier.{' and classifier.'.join(given)} exclude each other; give one of them")
    return given[0] if given else None


def loaded_checkpoint(context: Context) -> tuple[Classifier, list[str]]:
    """The classifier that was given instead of a training, and the names of what was left out of its file.

    Raises:
        ConfigError: it cannot be read, or does not fit network or classes.
    """
    cfg, number = context.cfg.classifier, context.data.num_classes
    if given_checkpoint(context) == "checkpoint":
        classifier = new_classifier(context, pretrained=False)
        return classifier, load_classifier(classifier, cfg.checkpoint)
    classifier = load_official_classifier(cfg.official_checkpoint)
    if classifier.num_classes != number:
        raise ConfigError(
            f"{cfg.official_checkpoint} knows {classifier.num_classes} classes, but the data has {number}"
        )
    return classifier, []


def fit(
    context: Context,
    artefact: Artefact,
    part: str,
    module: pl.LightningModule,
    epochs: int,
    data: pl.LightningDataModule,
    **kwargs: Any,
) -> dict[str, Any]:
    """Trains a module, from its last finished epoch on if there is one.

    Args:
        context: of the run.
        artefact: gets the checkpoints.
        part: of the configuration, whose callbacks there are.
        module: what is trained.
        epochs: in all.
        data: the batches of training and validation.
        kwargs: settings of the Trainer.

    Returns:
        The last metrics.
    """
    checkpoints = artefact.folder / "checkpoints"
    keep = ModelCheckpoint(checkpoints, filename="last", save_top_k=1, enable_version_counter=False)
    callbacks = [keep, SamplesCheck(), *context.callbacks(part).values()]
    trainer = context.trainer(artefact.stage, artefact.folder, callbacks, max_epochs=epochs, **kwargs)
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
    """Makes the configured RIB module; keyword arguments replace settings.

    A method of the user's own gets the classifier; the pooling if its constructor has such an argument, and
    references if its configuration has such a setting.
    """
    cfg = context.cfg

    def make(**replaced: Any) -> LocalizationModule:
        parts: dict[str, Any] = {"classifier": classifier}
        if takes(cfg.rib, "pooling"):
            parts["pooling"] = build(cfg.pooling)
        if "references" in cfg.rib:
            parts["references"] = references_of(context, pool)
        module = build(cfg.rib, **(parts | replaced))
        check_loss_views(module, len(cfg.data.scales))
        return module

    return make


def references_of(context: Context, pool: ImagePool | None) -> ReferenceBatches | None:
    """Batches of as many reference images as the configuration says; None for none."""
    number = context.cfg.rib.references
    check_number("references", number, low=0, whole=True)
    on_gpu = context.cfg.maps.crop_on_gpu
    return context.data.references(number, pool=pool, on_device=on_gpu) if number else None


def check_loss_views(module: LocalizationModule, views: int) -> None:
    """Raises a SettingError if the loss looks at a view that the data do not have."""
    if isinstance(module, RIBModule) and max(module.rib.loss_views) >= views:
        raise SettingError(
            f"loss_views: expected places below {views}, as many as data.scales has, got "
            f"{list(module.rib.loss_views)}"
        )


def check_rate_search(context: Context, module: LocalizationModule) -> None:
    """Raises a ConfigError if a rate cannot be searched for this module."""
    settings = context.cfg.rate_search
    check_search(settings.low, settings.high, settings.completed)
    if isinstance(module, RIBModule) and not module.rib.has_stop_rule:
        raise ConfigError(
            "rib.lr=auto goes by the stop rules; give rib.area_limit a number, or rib.margin (which stops "
            "nothing with rib.preset=paper)"
        )


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
    return context.cfg.maps.pool_gib * GIB if context.cfg.rib.get("references") else 0.0


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
    make: Callable[..., LocalizationModule], items: list[PredictItem], device: torch.device, lr: float
) -> list[Adaptation]:
    """Adapts to a few images at one learning rate."""
    module = make(lr=lr).to(device)
    return [module.localize(item.id, item.views, item.labels) for item in items]


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
