"""The affinity stages: confident labels, training, random walk (docs/method.md, section 5)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl

from ribseg.checks import check_arguments, check_switch, within
from ribseg.data.augment.seeding import share_of
from ribseg.data.augment.segmentation import (
    Reader,
    SegmentationDataset,
    segmentation_eval_transform,
    segmentation_train_transform,
)
from ribseg.data.io.maps import load_maps, map_path
from ribseg.data.io.masks import read_mask, write_mask
from ribseg.errors import ConfigError
from ribseg.files import missing_ids
from ribseg.functional import dense_crf
from ribseg.functional.dense_crf import check_dense_crf
from ribseg.methods.refine import CRF, check_confidence, check_walk, confident_labels
from ribseg.models import Backbone, Classifier, IRNet, PSANet, load_weights, read_state_dict
from ribseg.modules.refining import RandomWalkModule
from ribseg.modules.segmentation_data import CropDataModule
from ribseg.pipeline.recipe.build import build, check_training, takes
from ribseg.pipeline.recipe.data import PIXELS
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.recipe.training import fit, save_state
from ribseg.pipeline.stages.chains import Chain, RefinementStage
from ribseg.pipeline.stages.classifier import ClassifierStage
from ribseg.pipeline.stages.maps import MapStage
from ribseg.pipeline.stages.thresholds import (
    SCORE,
    all_images,
    check_threshold,
    choose_threshold,
    needs_masks,
)
from ribseg.store.artefact import Artefact
from ribseg.store.settings import COUNT, SHARE, counted, setting
from ribseg.store.stage import ImageStage, Stage

WEIGHTS = "affinity.pt"
MARGINS = {"foreground": 0.125, "background": -0.1}  # of "auto", added to the background score of the maps


@dataclass(frozen=True, kw_only=True)
class ConfidenceSettings:
    """The settings `refine.labels`."""

    foreground: float | str = setting(partial(SHARE, words=("auto",)))
    background: float | str = setting(partial(SHARE, words=("auto",)))
    crf: bool = setting(check_switch)

    def __post_init__(self) -> None:
        """Raises a ConfigError if the scores do not fit together."""
        if not self.automatic:
            check_confidence(self.foreground, self.background)  # type: ignore[arg-type]

    @property
    def automatic(self) -> bool:
        """Whether a score follows that of the maps."""
        return "auto" in (self.foreground, self.background)


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """The settings of `refine` for confident labels."""

    labels: ConfidenceSettings = setting(kind=ConfidenceSettings)
    maps_threshold: float | str = setting(SCORE)
    crf: Mapping[str, Any] = setting(partial(check_arguments, check_dense_crf))


@dataclass(frozen=True, kw_only=True)
class WalkSettings:
    """The settings of `refine` for the random walk."""

    walk: Mapping[str, Any] = setting(partial(check_arguments, check_walk))


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """The settings `affinity.backbone`."""

    name: str = setting()
    output_stride: int = setting()
    pretrained: bool = setting(check_switch, default=False)
    weights: str | None = setting(default=None)
    kwargs: Mapping[str, Any] | None = setting(default=None)


@dataclass(frozen=True, kw_only=True)
class AffinitySettings:
    """The settings `affinity`."""

    network: Mapping[str, Any] = setting()
    module: Mapping[str, Any] = setting()
    backbone: BackboneSettings = setting(kind=BackboneSettings)
    epochs: int = setting(COUNT)
    batch_size: int = setting(COUNT)
    crop_size: int = setting(COUNT)
    scale: Sequence[float] = setting()
    callbacks: Mapping[str, Any] | None = setting(default=None)


class AffinityLabelsStage(RefinementStage, ImageStage[Session]):
    """Makes the confident labels that the affinity network is trained on."""

    kind = "affinity_labels"

    def __init__(self, session: Session, chain: Chain, maps: Stage[Session]) -> None:
        super().__init__(session, chain, maps)
        self.cfg = session.settings[LabelSettings]

    def inputs(self) -> Sequence[Stage[Session]]:
        """The maps."""
        return [self.maps]

    def settings(self) -> dict[str, Any]:
        """Its own; the choice of the score and the CRF count only if they are used."""
        own = counted(self.cfg)
        if not self.cfg.labels.automatic:
            del own["maps_threshold"]
        if not self.cfg.labels.crf:
            del own["crf"]
        return self.session.counted(data=()) | {"refine": own}

    def data(self) -> str:
        """All images; the masks if a score is chosen on them."""
        masks = self.cfg.labels.automatic and needs_masks(self.cfg.maps_threshold)
        return all_images(self.session, masks)

    def ids(self) -> Sequence[str]:
        """The training images."""
        return self.session.data.pseudo.ids

    def missing(self, target: Artefact, ids: Sequence[str]) -> list[str]:
        """Those of the images that have no labels."""
        return missing_ids(target.folder / "labels", ids, ".png")

    def check(self) -> None:
        """Checks that there are masks to choose a score on."""
        if self.cfg.labels.automatic:
            check_threshold(self.session, "maps_threshold", self.cfg.maps_threshold)

    def prepare(self) -> None:
        """Chooses the background scores."""
        _ = self.confidence

    def make(self, target: Artefact, ids: Sequence[str]) -> None:
        """Labels images in processes of the first process of the run."""
        scores, source = self.confidence, self.maps.artefact.folder
        crf = partial(dense_crf, **self.cfg.crf) if self.cfg.labels.crf else None
        image = self.session.data.pseudo.image
        work = partial(write_confident_labels, image, scores, crf, source, target.folder)
        self.session.do(work, ids, "Confident labels")

    def work(self, target: Artefact) -> dict[str, Any]:
        """The background scores."""
        return dict(self.confidence)

    @cached_property
    def confidence(self) -> dict[str, float]:
        """The background scores, "foreground" and "background"."""
        labels, found = self.cfg.labels, {}
        best = choose_threshold(self.session, self.maps, self.cfg.maps_threshold) if labels.automatic else 0.0
        for name, margin in MARGINS.items():
            value = getattr(labels, name)
            found[name] = min(max(best + margin, 0.01), 0.99) if value == "auto" else float(value)
        return found


class AffinityStage(RefinementStage):
    """Trains IRNet, or PSA's network, on the confident labels.

    Args:
        session: of the run.
        labels: the stage that makes them.
        classifier: the stage that trains it, for its backbone.
    """

    kind = "affinity"
    sections = ("affinity",)
    files = (WEIGHTS,)
    version = 2  # a network over the classifier's backbone starts from other random weights

    def __init__(self, session: Session, labels: AffinityLabelsStage, classifier: ClassifierStage) -> None:
        super().__init__(session, labels.chain, labels.maps)
        self.cfg, self.labels, self._classifier = session.settings[AffinitySettings], labels, classifier

    @cached_property
    def classifier(self) -> ClassifierStage | None:
        """The stage whose backbone the network shares; None if it has its own."""
        shares = self.cfg.backbone.weights == "classifier" and takes(self.cfg.network, "backbone")
        return self._classifier if shares else None

    def inputs(self) -> Sequence[Stage[Session]]:
        """The confident labels, and the classifier if its backbone is used."""
        return [*([self.classifier] if self.classifier else []), self.labels]

    def settings(self) -> dict[str, Any]:
        """Its own, and those of trainings."""
        common = self.session.counted("callbacks", "trainer", "seed", "tf32", data=PIXELS)
        return {"affinity": counted(self.cfg)} | common

    def data(self) -> str:
        """The training images."""
        return self.session.data.pseudo.fingerprint(masks=False)

    def check(self) -> None:
        """Builds the network and its training."""
        self.session.callbacks("affinity")
        if self.session.run.computes(self):
            share_of(self.cfg.batch_size, self.session.processes, "affinity.batch_size")
            with within("affinity.network"):
                network = self.network(self.classifier.checked if self.classifier else None)
            self.training(network)

    def network(self, classifier: Classifier | None = None) -> IRNet | PSANet:
        """The configured network. One of the user's own need not take a backbone.

        Args:
            classifier: whose backbone is copied, if it is shared; None for the trained one.
        """
        if not takes(self.cfg.network, "backbone"):
            return build(self.cfg.network)
        if self.classifier is None:
            return build(self.cfg.network, backbone=self._backbone())
        shared = self.classifier.trained if classifier is None else classifier
        return build(self.cfg.network, backbone=copy.deepcopy(shared.backbone))

    def _backbone(self) -> Backbone:
        cfg = self.cfg.backbone
        backbone = Backbone(cfg.name, cfg.pretrained, cfg.output_stride, kwargs=cfg.kwargs)
        if cfg.weights is not None:
            load_weights(backbone, cfg.weights)
        return backbone

    def training(self, network: IRNet | PSANet) -> pl.LightningModule:
        """The configured module that trains the network.

        Raises:
            ConfigError: it cannot be built, or the crops are too small for the pixel pairs of the loss.
        """
        module = check_training("affinity.module", self.cfg.module, network=network)
        smallest = getattr(module, "smallest_crop", 1)
        if self.cfg.crop_size < smallest:
            raise ConfigError(
                f"expected affinity.crop_size of at least {smallest // module.radius} * "
                f"affinity.module.radius = {smallest} pixels, got {self.cfg.crop_size}"
            )
        return module

    def work(self, target: Artefact) -> dict[str, Any]:
        """Trains the network and saves it."""
        cfg, session = self.cfg, self.session
        pl.seed_everything(session.cfg.seed, workers=True, verbose=False)
        network = self.network()
        module, crops, epochs = self.training(network), self.crops(), cfg.epochs
        # The validation after the last epoch measures the mean displacement.
        facts = fit(session, target, "affinity", module, epochs, crops, check_val_every_n_epoch=epochs)
        session.group.on_first(lambda: save_state(network, target.folder / WEIGHTS))
        return facts

    def crops(self) -> CropDataModule:
        """Augmented crops with confident labels; for the validation plain ones, to measure displacements."""
        cfg, data, labels = self.cfg, self.session.data, self.labels.artefact.folder
        augmented = segmentation_train_transform(cfg.crop_size, cfg.scale, data.mean, data.std)
        middle = segmentation_eval_transform(cfg.crop_size, data.mean, data.std)
        train, val = (
            SegmentationDataset(data.pseudo.ids, data.pseudo.image, partial(read_labels, labels), transform)
            for transform in (augmented, middle)
        )
        seed, name = self.session.cfg.seed, "affinity.batch_size"
        return CropDataModule(train, val, cfg.batch_size, data.num_workers, seed, name)


class RandomWalkStage(RefinementStage, MapStage):
    """Propagates the maps of all images by a random walk over the predicted affinities.

    Args:
        session: of the run.
        affinity: the stage that trains the network.
    """

    kind = "random_walk"
    scales: ClassVar[tuple[float, ...] | None] = (1.0,)

    def __init__(self, session: Session, affinity: AffinityStage) -> None:
        super().__init__(session, affinity.chain, affinity.maps)
        self.cfg, self.affinity = session.settings[WalkSettings], affinity

    def inputs(self) -> Sequence[Stage[Session]]:
        """The maps, the affinity network, and the classifier if its backbone is used."""
        shared = [self.affinity.classifier] if self.affinity.classifier else []
        return [self.maps, *shared, self.affinity]

    def settings(self) -> dict[str, Any]:
        """Its own, and those of maps; the network and its crops are the affinity stage's."""
        return self.map_settings("max_side") | {"refine": counted(self.cfg)}

    @cached_property
    def module(self) -> pl.LightningModule:
        """The `RandomWalkModule`."""
        network = self.affinity.network()
        network.load_state_dict(read_state_dict(self.affinity.artefact.folder / WEIGHTS))
        crop = self.affinity.cfg.crop_size
        return RandomWalkModule(network, self.read_maps, crop, **self.cfg.walk)


def label_path(folder: Path, image_id: str) -> Path:
    """The file of an image's confident labels."""
    return folder / "labels" / f"{image_id}.png"


def read_labels(folder: Path, image_id: str) -> np.ndarray:
    """The confident labels of an image: (H, W) uint8."""
    return read_mask(label_path(folder, image_id))


def write_confident_labels(
    read_image: Reader, scores: dict[str, float], crf: CRF | None, source: Path, target: Path, image_id: str
) -> None:
    """Computes and writes the confident labels of one image, from the maps in a stage's folder."""
    maps = load_maps(map_path(source, image_id))
    write_mask(label_path(target, image_id), confident_labels(read_image(image_id), maps, **scores, crf=crf))
