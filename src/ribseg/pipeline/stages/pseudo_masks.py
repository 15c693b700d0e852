"""The stage that makes pseudo masks from maps: palette PNGs, background scores, and their mIoU."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig

from ribseg.data.base import BaseDataset
from ribseg.data.io.files import missing_ids, scan_folder, write_json
from ribseg.data.io.maps import load_maps, map_path
from ribseg.data.io.masks import read_mask, write_mask
from ribseg.errors import ConfigError, DataError, list_problems
from ribseg.functional import argmax_labels, dense_crf, labels_with_saliency, pixel_adaptive, vote_segments
from ribseg.interop import read_saliency
from ribseg.methods.evaluation import NOTHING_SCORED, error_shares, full_size
from ribseg.methods.refine import labels_by_crf
from ribseg.metrics import (
    BoundaryF,
    bootstrap_miou,
    by_number_of_classes,
    by_object_size,
    interval,
    label_counts,
    pooled_scores,
)
from ribseg.pipeline.engine.context import Context, plain
from ribseg.pipeline.engine.stage import CROPS, VIEWS
from ribseg.pipeline.engine.store import Artefact, folder_digest
from ribseg.pipeline.engine.workers import Job, run_pool
from ribseg.pipeline.stages.chains import ATTENTION, WALK, Chain, RefinementStage
from ribseg.pipeline.stages.evaluate import boundary_scores
from ribseg.pipeline.stages.segments import (
    check_segments_there,
    counted_segments,
    has_class,
    segments_file,
    segments_of,
)
from ribseg.pipeline.stages.thresholds import (
    THRESHOLDS,
    all_images,
    check_thresholds,
    choose_threshold,
)

SCORES = "scores.json"
UNARIES = ("labels", "maps")  # what a CRF starts from
PARTS = ((WALK, ATTENTION), ("saliency",), ("crf", "pixel_adaptive"), ("segments",))


class Variant(NamedTuple):
    """The steps from maps to masks.

    Attributes:
        refined: "random_walk" or "attention", the stage that refines the maps first, or "" for none.
        saliency: saliency maps define the background, not a background score.
        refinement: "crf", "pixel_adaptive", or "" for none.
        segments: class-agnostic segments vote on the labels, last of all.
    """

    refined: str
    saliency: bool
    refinement: str
    segments: bool

    @classmethod
    def parse(cls, name: str) -> "Variant":
        """The variant of a name: steps in this order, joined by "_"; "none" for no step.

        Raises:
            ConfigError: unknown name.
        """
        if name not in VARIANTS:
            raise ConfigError(f"expected refine.variants out of {', '.join(VARIANTS)}; got {name!r}")
        refinement = next((part for part in PARTS[2] if part in name), "")
        refined = next((part for part in PARTS[0] if name.startswith(part)), "")
        return cls(refined, "saliency" in name, refinement, "segments" in name)


VARIANTS = tuple(
    "_".join(filter(None, parts)) or "none" for parts in product(*(("", *names) for names in PARTS))
)


class Recipe(NamedTuple):
    """The settings for making a mask.

    Attributes:
        threshold: background score; with saliency, the threshold above which a pixel is salient.
        saliency: whether jobs include a saliency map.
        crf: settings of `dense_crf`, or None.
        on_maps: whether the CRF starts from the maps instead of labels.
        pixel_adaptive: settings of `pixel_adaptive`, or None.
        segments: the settings `refine.segments`, or None.
    """

    threshold: float
    saliency: bool
    crf: dict[str, Any] | None
    on_maps: bool
    pixel_adaptive: dict[str, Any] | None
    segments: dict[str, Any] | None


class PseudoMasksStage(RefinementStage):
    """Makes the palette PNGs of all images for each chosen variant; the last one is for the segmenter."""

    kind = "pseudo_masks"
    in_shards: ClassVar[bool] = True
    version = 2  # added: gains over the first variant, errors per class, scores in groups of images
    parts = ("refine", "evaluate", "data", "seed")
    neutral = (
        *("refine.labels", "refine.walk", "refine.attention", "evaluate.fixed_threshold", "evaluate.boxes"),
        *CROPS,
        *VIEWS,
        *("data.batch_size", "data.mean", "data.std"),
    )

    def required(self, context: Context) -> tuple[str, ...]:
        """The maps that the variants start from."""
        chosen = self.chain.variants(context.cfg)
        return tuple(dict.fromkeys(map_source(self.chain, variant) for variant in chosen))

    def settings(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """The settings, with digests of the saliency maps and of the segments instead of their folders."""
        settings, folder = super().settings(cfg), cfg["refine"]["saliency"]
        variants = list(self.chain.variants(cfg))
        settings["refine"]["variants"] = variants
        if folder is not None and any(Variant.parse(name).saliency for name in variants):
            settings["refine"]["saliency"] = folder_digest(folder)
        if any(Variant.parse(name).segments for name in variants):
            settings["refine"]["segments"] = counted_segments(settings["refine"]["segments"])
        else:  # then they change nothing, and need not be there
            settings["refine"].pop("segments", None)
        return settings

    def data(self, context: Context) -> str:
        """All images, and the masks of the evaluated splits, from which thresholds and scores come."""
        return all_images(context, masks=bool(context.data.eval_splits))

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether all masks and their scores exist."""
        folders = [artefact.folder / variant for variant in self.chain.variants(context.cfg)]
        return (artefact.folder / SCORES).is_file() and not any(
            missing_ids(folder, context.data.all_ids, ".png") for folder in folders
        )

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Writes the missing masks, in a process pool of the first process, and scores all."""
        context.on_first(lambda: self._masks(context, artefact))
        return {"variants": list(self.chain.variants(context.cfg))}

    def _masks(self, context: Context, artefact: Artefact) -> None:
        thresholds = background_scores(context, self.chain)
        for name, threshold in thresholds.items():
            chosen = recipe(context, Variant.parse(name), threshold)
            work = partial(write_pseudo_mask, context.data.folders, chosen)
            run_pool(context, work, jobs(context, self.chain, artefact, name), f"Pseudo masks ({name})")
        if context.shard is not None:
            return  # the last call scores the masks of all shards
        scores: dict[str, dict[str, Any]] = {variant: {} for variant in thresholds}
        for split, folder in context.data.evals.items():
            for variant, found in score_split(context, artefact, folder, list(thresholds)).items():
                scores[variant][split] = found
        for variant, threshold in thresholds.items():
            scores[variant]["threshold"] = threshold
        for variant, by_split in scores.items():
            if any(isinstance(s, dict) and s["foreground"] == 0 for s in by_split.values()):
                context.console.say(
                    f"the masks of {variant!r} hold only background; its score "
                    f"{thresholds[variant]:.2f} is too high, or the maps are empty",
                    "  warning",
                    "yellow",
                )
        write_json(artefact.folder / SCORES, scores)


def score_split(
    context: Context, artefact: Artefact, folder: BaseDataset, variants: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Variant -> scores of its masks of a split: `mask_scores`, scores in groups, and gains over the first.

    Returns:
        Also "by_object_size" and "by_number_of_classes"; with evaluate.boundary "boundary_f" and
        "boundary_f_per_class"; and of all variants but the first "gain" of mIoU over it, with
        "gain_interval", the paired 95 % bootstrap interval over images.
    """
    settings, found, draws = context.cfg.evaluate, {}, {}
    numbers = (folder.labels > 0).sum(1).tolist()
    for variant in variants:
        counts, boundaries = count_masks(context, artefact, folder, variant)
        found[variant] = mask_scores(counts) | {
            "by_object_size": by_object_size(counts),
            "by_number_of_classes": by_number_of_classes(counts, numbers),
        }
        if boundaries is not None:
            found[variant] |= boundary_scores(boundaries.counts)
        if len(variants) > 1:
            draws[variant] = bootstrap_miou(counts, settings.bootstrap, context.cfg.seed)
    first = variants[0]
    for variant in variants[1:]:
        gain = found[variant]["miou"] - found[first]["miou"]
        found[variant] |= {"gain": gain, "gain_interval": interval(draws[variant] - draws[first])}
    return found


def count_masks(
    context: Context, artefact: Artefact, folder: BaseDataset, variant: str
) -> tuple[torch.Tensor, BoundaryF | None]:
    """The (N, 3, C+1) `label_counts` of a variant's masks of a split, and their boundaries if asked for."""
    boundaries = BoundaryF(folder.num_classes) if context.cfg.evaluate.boundary else None
    counts = []
    title = f"Scoring masks ({variant}) of {folder.split}"
    for image_id in context.track(folder.ids, title, len(folder), "mask"):
        mask = torch.from_numpy(read_mask(mask_path(artefact.folder, variant, image_id)))
        target = torch.from_numpy(folder.mask(image_id))
        counts.append(label_counts(mask, target, folder.num_classes))
        if boundaries is not None:
            boundaries.update(mask, target)
    return torch.stack(counts), boundaries


def mask_scores(counts: torch.Tensor) -> dict[str, Any]:
    """Scores of masks from (N, 3, C+1) `label_counts`, as VOC computes them: pooled over all images.

    Returns:
        Fractions: "miou", "iou" per label, "precision", "recall"; "false_positive": the share of predicted
        object pixels that are background; "false_negative": the share of object pixels predicted as
        background; "foreground": the share of object pixels in the masks; "false_positive_per_class" and
        "false_negative_per_class", per label, see `error_shares`. And "images", their number.

    Raises:
        DataError: the ground truth has no object pixel.
    """
    scores = pooled_scores(counts)
    if scores.miou.isnan():
        raise DataError(NOTHING_SCORED)
    hit, predicted, true = counts.sum(0).double()
    objects, truth, total = predicted[1:].sum(), true[1:].sum(), true.sum()
    return {
        "miou": float(scores.miou),
        "iou": [None if np.isnan(value) else value for value in scores.iou.tolist()],
        "precision": float(scores.precision),
        "recall": float(scores.recall),
        "false_positive": float((true[0] - hit[0]) / objects.clamp(min=1)),
        "false_negative": float((predicted[0] - hit[0]) / truth.clamp(min=1)),
        "foreground": float(objects / total.clamp(min=1)),
        **error_shares(counts),
        "images": len(counts),
    }


def check_variants(cfg: DictConfig) -> None:
    """Raises a ConfigError if `refine.variants` is empty or names an unknown variant."""
    if not cfg.refine.variants:
        raise ConfigError(f"expected refine.variants=[...] with some of {', '.join(VARIANTS)}, got none")
    for name in cfg.refine.variants:
        Variant.parse(name)


def map_source(chain: Chain, variant: str) -> str:
    """The stage whose maps a variant starts from."""
    refined = Variant.parse(variant).refined
    return chain.name(refined) if refined else chain.maps


def threshold_setting(variant: Variant) -> str:
    """The setting of `refine` with the background score of a variant."""
    return THRESHOLDS[variant.refined]


def background_scores(context: Context, chain: Chain) -> dict[str, float]:
    """Variant -> background score, chosen once per source of maps; with saliency the saliency threshold."""
    cfg, scores = context.cfg.refine, {}
    chosen: dict[str, float] = {}
    for name in chain.variants(context.cfg):
        variant, source = Variant.parse(name), map_source(chain, name)
        if variant.saliency:
            scores[name] = float(cfg.saliency_threshold)
            continue
        if source not in chosen:
            chosen[source] = choose_threshold(context, source, cfg[threshold_setting(variant)])
        scores[name] = chosen[source]
    return scores


def recipe(context: Context, variant: Variant, threshold: float) -> Recipe:
    """The settings of a variant."""
    cfg = context.cfg.refine
    settings = {name: plain(cfg[name]) if variant.refinement == name else None for name in PARTS[2]}
    segments = plain(cfg.segments) if variant.segments else None
    on_maps = cfg.crf_unary == "maps"
    return Recipe(threshold, variant.saliency, on_maps=on_maps, segments=segments, **settings)


def jobs(context: Context, chain: Chain, artefact: Artefact, name: str) -> list[Job]:
    """Image id, maps, saliency map or None, file of segments or None, and mask file, for all images.

    An image without a class is all background and needs neither.
    """
    variant, source = Variant.parse(name), context.artefacts[map_source(chain, name)].folder
    found: list[Job] = []
    for i in context.data.all_ids:
        labelled = has_class(context, i)
        saliency = saliency_folder(context) / f"{i}.png" if variant.saliency and labelled else None
        segments = segments_file(context, i) if variant.segments and labelled else None
        found.append((i, map_path(source, i), saliency, segments, mask_path(artefact.folder, name, i)))
    return found


def saliency_folder(context: Context) -> Path:
    """The folder of the saliency maps.

    Raises:
        ConfigError: refine.saliency is not set.
    """
    if context.cfg.refine.saliency is None:
        raise ConfigError("the saliency variants need refine.saliency=PATH with gray PNGs <image id>.png")
    return Path(context.cfg.refine.saliency)


def check_refinement(context: Context, chain: Chain) -> None:
    """Checks that the variants of a chain have the data they need: masks for scores, saliency maps.

    Raises:
        RibsegError: something is missing.
    """
    check_variants(context.cfg)
    chosen = [Variant.parse(name) for name in chain.variants(context.cfg)]
    used = {threshold_setting(variant) for variant in chosen if not variant.saliency}
    if "auto" in plain(context.cfg.refine.labels).values():
        used.add(THRESHOLDS[""])
    check_thresholds(context.cfg, sorted(used))
    if any(variant.saliency for variant in chosen):
        check_saliency(context)
    if context.cfg.refine.crf_unary == "maps" and any(v.saliency and v.refinement == "crf" for v in chosen):
        raise ConfigError(
            "expected refine.crf_unary=labels for variants with saliency and a CRF: saliency maps give "
            "labels of the background, not probabilities"
        )
    if any(variant.segments for variant in chosen):
        check_segments_there(context)


def check_saliency(context: Context) -> None:
    """Raises a DataError that lists the images with a class but without a saliency map."""
    folder = saliency_folder(context)
    there = scan_folder(folder, (".png",))
    absent = [i for i in context.data.all_ids if has_class(context, i) and i not in there]
    if absent:
        problems = {"images without one": absent}
        advice = "Expected a gray PNG <image id>.png for every image with a class."
        raise DataError(list_problems(f"the saliency maps in {folder} cannot be used", problems, advice))


def mask_path(folder: Path, variant: str, image_id: str) -> Path:
    """The file of an image's pseudo mask."""
    return folder / variant / f"{image_id}.png"


def read_pseudo_mask(folder: Path, variant: str, num_classes: int, image_id: str) -> np.ndarray:
    """The pseudo mask of an image: (H, W) uint8."""
    return read_mask(mask_path(folder, variant, image_id), num_classes)


def write_pseudo_mask(folders: Mapping[str, BaseDataset], recipe: Recipe, job: Job) -> None:
    """Computes and writes the pseudo mask of one image."""
    image_id, maps_path, saliency, segments, target = job
    maps, image = load_maps(maps_path), folders[image_id].image(image_id)
    size = (image.shape[0], image.shape[1])
    full = full_size(maps, size)
    if recipe.pixel_adaptive is not None:
        full = pixel_adaptive(torch.from_numpy(image).permute(2, 0, 1), full, **recipe.pixel_adaptive)
    if saliency is not None:
        labels = labels_with_saliency(full, maps.classes, read_saliency(saliency, size), recipe.threshold)
    else:
        labels = argmax_labels(full, maps.classes, recipe.threshold)
    result = labels.numpy().astype(np.uint8)
    if recipe.crf is not None and len(maps.classes):
        crf: Callable[..., Any] = partial(dense_crf, **recipe.crf)
        if recipe.on_maps:
            result = labels_by_crf(image, full, maps.classes, recipe.threshold, crf)
        else:
            result = crf(image, result)
    if recipe.segments is not None and len(maps.classes):
        found = segments_of(image, segments, recipe.segments)
        if found is not None:  # imported maps may have classes where the image has no label
            result = vote_segments(torch.from_numpy(result), found, recipe.segments["share"]).numpy()
    write_mask(target, result)
