"""The stage that makes pseudo masks from maps: palette PNGs, background scores, and their mIoU."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ribseg.checks import check_arguments, check_choice
from ribseg.data.base import BaseDataset
from ribseg.data.io.maps import load_maps, map_path
from ribseg.data.io.masks import IGNORE, mask_ids, read_mask, write_class_names, write_mask
from ribseg.errors import ConfigError
from ribseg.files import missing_ids, write_json
from ribseg.functional import (
    argmax_labels,
    dense_crf,
    labels_with_saliency,
    labels_with_scene_saliency,
    pixel_adaptive,
    vote_segments,
)
from ribseg.functional.dense_crf import check_dense_crf
from ribseg.functional.pixel_adaptive import check_pixel_adaptive
from ribseg.functional.saliency import check_scenes
from ribseg.interop import read_saliency
from ribseg.methods.refine import labels_by_crf
from ribseg.methods.segments import ENDINGS, check_felzenszwalb, check_segments, check_slic
from ribseg.metrics.evaluation import full_size
from ribseg.pipeline.recipe.methods import ATTENTION, WALK
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.stages.affinity import RandomWalkStage
from ribseg.pipeline.stages.attention import AttentionStage
from ribseg.pipeline.stages.chains import RefinementStage
from ribseg.pipeline.stages.evaluate import EvaluateSettings
from ribseg.pipeline.stages.saliency import KINDS, MAPS, SaliencyStage
from ribseg.pipeline.stages.scored_masks import SCORES, score_split
from ribseg.pipeline.stages.segments import (
    check_files_there,
    check_saliency_files,
    check_segment_files,
    check_segments_there,
    segments_of,
)
from ribseg.pipeline.stages.thresholds import SCORE, all_images, check_threshold, choose_threshold
from ribseg.pipeline.stages.variants import THRESHOLDS, VARIANTS, Variant, mask_path
from ribseg.store.artefact import Artefact
from ribseg.store.settings import SHARE, counted, setting
from ribseg.store.stage import ImageStage, Stage


def check_variants(name: str, variants: Sequence[str]) -> None:
    """Raises a ConfigError if there is none, or an unknown variant."""
    if not variants:
        raise ConfigError(f"expected refine.variants=[...] with some of {', '.join(VARIANTS)}, got none")
    for variant in variants:
        Variant.parse(variant)


def check_segment_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Raises a ConfigError if settings in `refine.segments`, superpixels included, are out of range."""
    check_arguments(check_segments, name, settings)
    check_arguments(check_slic, f"{name}.slic", settings["slic"])
    check_arguments(check_felzenszwalb, f"{name}.felzenszwalb", settings["felzenszwalb"])


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """The settings of `refine` for pseudo masks."""

    variants: Sequence[str] = setting(check_variants)
    maps_threshold: float | str = setting(SCORE)
    walk_threshold: float | str = setting(SCORE)
    attention_threshold: float | str = setting(SCORE)
    saliency: str | None = setting()
    saliency_threshold: float = setting(SHARE)
    scenes: Mapping[str, Any] = setting(partial(check_arguments, check_scenes))
    crf_unary: str = setting(partial(check_choice, choices=("labels", "maps")))
    crf: Mapping[str, Any] = setting(partial(check_arguments, check_dense_crf))
    pixel_adaptive: Mapping[str, Any] = setting(partial(check_arguments, check_pixel_adaptive))
    segments: Mapping[str, Any] = setting(check_segment_settings)
    maps: str = setting(neutral="selects an input, whose digest counts")


class PseudoMasksStage(RefinementStage, ImageStage[Session]):
    """Makes the palette PNGs of all images for each chosen variant; the last one is for the segmenter.

    Args:
        session: of the run.
        walk: the stage of the same chain that makes maps by a random walk.
        attention: the one that makes maps by attention.
        saliency: the one that makes saliency maps, if they are no files.
    """

    kind = "pseudo_masks"
    files = (SCORES,)
    version = 3  # images without a label are background in variants with saliency, whatever their maps hold

    def __init__(
        self, session: Session, walk: RandomWalkStage, attention: AttentionStage, saliency: SaliencyStage
    ) -> None:
        super().__init__(session, walk.chain, walk.maps)
        self.saliency = saliency
        self.cfg = session.settings[MaskSettings]
        self.refined: dict[str, Stage[Session]] = {"": self.maps, WALK: walk, ATTENTION: attention}

    @property
    def variants(self) -> dict[str, Variant]:
        """Name -> steps of the variants that it makes."""
        return {name: Variant.parse(name) for name in self.chain.variants(self.cfg.variants)}

    @property
    def uses_saliency(self) -> bool:
        """Whether some variant needs saliency maps."""
        return any(variant.saliency for variant in self.variants.values())

    def inputs(self) -> Sequence[Stage[Session]]:
        """The stages whose maps the variants start from, and that of the saliency maps if it is one."""
        made = [self.saliency] if self.uses_saliency and self.saliency.cfg.made else []
        refined = (self.refined[variant.refined] for variant in self.variants.values())
        return list(dict.fromkeys([*refined, *made]))

    def settings(self) -> dict[str, Any]:
        """Its own, with digests of the saliency maps and of the segments instead of their folders."""
        digest = self.session.contents.of_folder
        own, variants = counted(self.cfg) | {"variants": list(self.variants)}, self.variants.values()
        if self.cfg.saliency is not None and self.uses_saliency:
            own["saliency"] = "" if self.saliency.cfg.made else digest(self.cfg.saliency)
        if not any(variant.saliency == "scenes" for variant in variants):
            del own["scenes"]
        if not any(variant.segments for variant in variants):
            del own["segments"]  # they change nothing, and need not be there
        elif self.cfg.segments["source"] in ENDINGS and self.cfg.segments["folder"] is not None:
            own["segments"] = {**self.cfg.segments, "folder": digest(self.cfg.segments["folder"])}
        scoring = self.session.settings[EvaluateSettings]
        used = {name: getattr(scoring, name) for name in ("thresholds", "bootstrap", "boundary")}
        return self.session.counted("seed", data=("eval_splits",)) | {"refine": own, "evaluate": used}

    def data(self) -> str:
        """All images, and the masks of the evaluated splits, from which thresholds and scores come."""
        return all_images(self.session, masks=bool(self.session.data.eval_splits))

    def ids(self) -> Sequence[str]:
        """All images."""
        return self.session.data.all_ids

    def missing(self, target: Artefact, ids: Sequence[str]) -> list[str]:
        """Those of the images that lack a mask of some variant."""
        absent = {i for name in self.variants for i in missing_ids(target.folder / name, ids, ".png")}
        return [image_id for image_id in ids if image_id in absent]

    def check(self) -> None:
        """Checks that the variants have the data they need: masks for scores, saliency maps, segments."""
        variants, cfg = self.variants.values(), self.cfg
        for name in sorted({THRESHOLDS[variant.refined] for variant in variants if not variant.saliency}):
            check_threshold(self.session, name, getattr(cfg, name))
        if self.uses_saliency and not self.saliency.cfg.made:
            folder, ids = self.saliency_folder, self.session.data.labelled_ids
            check_files_there(self.session, "saliency maps (gray)", folder, ".png")
            if self.session.run.computes(self):
                self.session.group.on_first(lambda: check_saliency_files(self.session, folder, ids))
        if cfg.crf_unary == "maps" and any(v.saliency and v.refinement == "crf" for v in variants):
            raise ConfigError(
                "expected refine.crf_unary=labels for variants with saliency and a CRF: saliency maps give "
                "labels of the background, not probabilities"
            )
        if any(variant.segments for variant in variants):
            check_segments_there(self.session, cfg.segments)
            if self.session.run.computes(self) and cfg.segments["source"] in ENDINGS:
                self.session.group.on_first(lambda: check_segment_files(self.session, cfg.segments))

    @property
    def saliency_folder(self) -> Path:
        """The folder of the saliency maps.

        Raises:
            ConfigError: refine.saliency is not set.
        """
        if self.saliency.cfg.made:
            return self.saliency.artefact.folder / MAPS
        if self.cfg.saliency is None:
            raise ConfigError(
                "variants with saliency or scenes need refine.saliency=PATH with gray PNGs <image id>.png, "
                f"or {', '.join(KINDS)} and refine.saliency_network=FILE"
            )
        return Path(self.cfg.saliency)

    def prepare(self) -> None:
        """Chooses the background scores."""
        _ = self.thresholds

    def make(self, target: Artefact, ids: Sequence[str]) -> None:
        """Writes the missing masks of images in processes of the first process of the run."""
        folders, thresholds = self.session.data.folders, self.thresholds  # chosen by all processes together
        write_class_names(target.folder, self.session.data.classes)
        for name, variant in self.variants.items():
            source, place = self.refined[variant.refined].artefact.folder, target.folder / name
            salient = self.saliency_folder if variant.saliency else None
            work = partial(
                write_pseudo_mask, folders, self.cfg, variant, thresholds[name], source, salient, place
            )
            missing = missing_ids(place, ids, ".png")
            self.session.do(work, missing, f"Pseudo masks ({name})")

    def work(self, target: Artefact) -> dict[str, Any]:
        """Scores the masks of all images."""
        thresholds = self.thresholds  # in all processes, which choose them together
        self.session.group.on_first(lambda: self._score(target))
        return {"variants": list(thresholds)}

    def _score(self, target: Artefact) -> None:
        thresholds = self.thresholds
        scores: dict[str, dict[str, Any]] = {variant: {} for variant in thresholds}
        for split, folder in self.session.data.evals.items():
            for variant, found in score_split(self.session, target, folder, list(thresholds)).items():
                scores[variant][split] = found
        for variant, by_split in scores.items():
            if self._is_empty(target, variant):
                why = f"its score {thresholds[variant]:.2f} is too high, or the maps are empty"
                self.session.warn(f"the masks of {variant!r} hold only background; {why}", "  warning")
            by_split["threshold"] = thresholds[variant]
        write_json(target.folder / SCORES, scores)

    def _is_empty(self, target: Artefact, variant: str) -> bool:
        """Whether no mask of an image with a class shows one; stops reading at the first that does."""
        paths = [mask_path(target.folder, variant, i) for i in self.session.data.labelled_ids]
        return bool(paths) and not any({*mask_ids(read_mask(path))} - {0, IGNORE} for path in paths)

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """Variant -> background score, chosen once per source; with saliency the saliency threshold."""
        names = {v.refined: THRESHOLDS[v.refined] for v in self.variants.values() if not v.saliency}
        given = {refined: (self.refined[refined], getattr(self.cfg, names[refined])) for refined in names}
        scores = {refined: choose_threshold(self.session, *given[refined]) for refined in given}
        salient = float(self.cfg.saliency_threshold)
        return {name: salient if v.saliency else scores[v.refined] for name, v in self.variants.items()}


def read_pseudo_mask(folder: Path, variant: str, num_classes: int, image_id: str) -> np.ndarray:
    """The pseudo mask of an image: (H, W) uint8."""
    return read_mask(mask_path(folder, variant, image_id), num_classes)


def write_pseudo_mask(
    folders: Mapping[str, BaseDataset],
    cfg: MaskSettings,
    variant: Variant,
    threshold: float,
    source: Path,
    salient: Path | None,
    place: Path,
    image_id: str,
) -> None:
    """Computes and writes the pseudo mask of one image.

    Args:
        folders: image id -> its data.
        cfg: settings of the steps.
        variant: the steps.
        threshold: background score; with saliency, that above which a pixel is salient.
        source: folder of the stage whose maps they start from.
        salient: folder of the saliency maps, for a variant with saliency.
        place: folder of the variant's masks.
        image_id: of the image; one without a label needs neither saliency map nor segments.
    """
    maps, image = load_maps(map_path(source, image_id)), folders[image_id].image(image_id)
    size, labelled = (image.shape[0], image.shape[1]), folders[image_id].has_class(image_id)
    full = full_size(maps, size)
    if variant.refinement == "pixel_adaptive":
        full = pixel_adaptive(torch.from_numpy(image).permute(2, 0, 1), full, **cfg.pixel_adaptive)
    if salient is None:
        labels = argmax_labels(full, maps.classes, threshold)
    elif labelled:
        found = read_saliency(salient / f"{image_id}.png", size)
        if variant.saliency == "scenes":
            labels = labels_with_scene_saliency(full, maps.classes, found, threshold, **cfg.scenes)
        else:
            labels = labels_with_saliency(full, maps.classes, found, threshold)
    else:  # imported maps may have classes where the image has no label
        labels = torch.zeros(size, dtype=torch.int64)
    result = labels.numpy().astype(np.uint8)
    if variant.refinement == "crf" and len(maps.classes):
        crf: Callable[..., Any] = partial(dense_crf, **cfg.crf)
        if cfg.crf_unary == "maps":
            result = labels_by_crf(image, full, maps.classes, threshold, crf)
        else:
            result = crf(image, result)
    there = labelled or cfg.segments["source"] not in ENDINGS  # files are those of images with a label
    if variant.segments and len(maps.classes) and there:
        segments = segments_of(image, image_id, cfg.segments)
        result = vote_segments(torch.from_numpy(result), segments, cfg.segments["share"]).numpy()
    write_mask(place / f"{image_id}.png", result)
