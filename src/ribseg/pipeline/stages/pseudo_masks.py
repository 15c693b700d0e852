"""The stage that makes pseudo masks from maps: palette PNGs, background scores, and their mIoU."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ribseg.data.base import BaseDataset
from ribseg.data.io.maps import load_maps, map_path
from ribseg.data.io.masks import read_mask, write_mask
from ribseg.errors import ConfigError, DataError, list_problems
from ribseg.files import missing_ids, scan_folder, write_json
from ribseg.functional import argmax_labels, dense_crf, labels_with_saliency, pixel_adaptive, vote_segments
from ribseg.interop import read_saliency
from ribseg.methods.refine import labels_by_crf
from ribseg.metrics.evaluation import full_size
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.workers import Job, run_pool
from ribseg.pipeline.stages.chains import Chain, RefinementStage
from ribseg.pipeline.stages.scored_masks import SCORES, score_split
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
from ribseg.pipeline.stages.variants import (
    Recipe,
    Variant,
    check_variants,
    map_source,
    mask_path,
    recipe,
    threshold_setting,
)
from ribseg.store.artefact import Artefact, folder_digest
from ribseg.store.digest import plain
from ribseg.store.stage import CROPS, VIEWS


class PseudoMasksStage(RefinementStage):
    """Makes the palette PNGs of all images for each chosen variant; the last one is for the segmenter."""

    kind = "pseudo_masks"
    in_shards: ClassVar[bool] = True
    version = 3  # images without a label are background in variants with saliency, whatever their maps hold
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
    elif recipe.saliency:  # imported maps may have classes where the image has no label
        labels = torch.zeros(size, dtype=torch.int64)
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
        if found is not None:  # none for an image without a label
            result = vote_segments(torch.from_numpy(result), found, recipe.segments["share"]).numpy()
    write_mask(target, result)
