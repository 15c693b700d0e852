"""Pseudo masks from maps: palette PNGs, their background scores, and what they are worth."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ribseg.callbacks import map_path
from ribseg.data.files import atomic_write
from ribseg.data.images import read_image
from ribseg.data.maps import load_maps
from ribseg.data.masks import read_mask, write_mask
from ribseg.errors import ConfigError
from ribseg.evaluation import full_size
from ribseg.functional import argmax_labels, dense_crf
from ribseg.metrics import label_counts, pooled_scores
from ribseg.pipeline.affinity import maps_to_refine
from ribseg.pipeline.context import Context, plain
from ribseg.pipeline.evaluate import best_threshold
from ribseg.pipeline.pool import Job, run_pool
from ribseg.pipeline.stages import Stage
from ribseg.pipeline.store import Artefact

SCORES = "scores.json"
VARIANTS = ("none", "crf", "random_walk", "random_walk_crf")


class PseudoMasksStage(Stage):
    """Palette PNGs of all images, for each of the chosen variants; the last is the one to train on."""

    name = "pseudo_masks"

    def required(self, context: Context) -> tuple[str, ...]:
        """The maps that the variants start from."""
        return tuple(dict.fromkeys(map_source(context, variant) for variant in variants(context)))

    def artefact(self, context: Context) -> Artefact:
        """Depends on the maps, the images and the masks, which give thresholds and scores."""
        settings = context.settings("refine", "evaluate") | {"splits": list(context.data.eval_splits)}
        data = context.data.fingerprint(masks=bool(context.data.eval_splits))
        return context.store.artefact(self.name, settings, self.inputs(context), data)

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Writes the masks that are not there yet, in a pool of the first process, and scores them."""
        context.on_first(lambda: self._masks(context, artefact))
        return {"variants": list(variants(context))}

    def _masks(self, context: Context, artefact: Artefact) -> None:
        thresholds = {variant: background_score(context, variant) for variant in variants(context)}
        for variant, threshold in thresholds.items():
            source = context.artefacts[map_source(context, variant)].folder
            crf = plain(context.cfg.refine.crf) if variant.endswith("crf") else None
            jobs = [
                (folder.image_path(i), map_path(source, i), mask_path(artefact.folder, variant, i))
                for i, folder in context.data.folders.items()
            ]
            run_pool(context, partial(write_pseudo_mask, threshold, crf), jobs, f"Pseudo masks ({variant})")
        scores = {
            variant: {split: self._score(context, artefact, variant, split) for split in context.data.evals}
            | {"threshold": threshold}
            for variant, threshold in thresholds.items()
        }
        for variant, by_split in scores.items():
            if any(isinstance(s, dict) and s["foreground"] == 0 for s in by_split.values()):
                context.console.print(
                    f"  [yellow]warning[/]: the masks of {variant!r} hold only background; its score "
                    f"{thresholds[variant]:.2f} is too high, or the maps are empty"
                )
        atomic_write(artefact.folder / SCORES, json.dumps(scores, indent=1).encode())

    def _score(self, context: Context, artefact: Artefact, variant: str, split: str) -> dict[str, Any]:
        folder = context.data.evals[split]
        counts = []
        for image_id in folder.ids:
            mask = torch.from_numpy(read_mask(mask_path(artefact.folder, variant, image_id)))
            counts.append(label_counts(mask, torch.from_numpy(folder.mask(image_id)), folder.num_classes))
        return mask_scores(torch.stack(counts))


def mask_scores(counts: torch.Tensor) -> dict[str, Any]:
    """VOC's scores of masks from (N, 3, C+1) `label_counts`: one confusion matrix over all images.

    Returns:
        "miou", "iou" per label, "precision", "recall"; "false_positive" and "false_negative": the share of
        predicted object pixels that are background, and of object pixels that were called background;
        "foreground": the share of object pixels in the masks. Fractions.
    """
    scores = pooled_scores(counts)
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
        "images": len(counts),
    }


def variants(context: Context) -> tuple[str, ...]:
    """The chosen variants.

    Raises:
        ConfigError: one is unknown, or there is none.
    """
    chosen = tuple(context.cfg.refine.variants)
    unknown = [variant for variant in chosen if variant not in VARIANTS]
    if unknown or not chosen:
        raise ConfigError(
            f"expected refine.variants=[...] with some of {', '.join(VARIANTS)}, got {list(chosen)}"
        )
    return chosen


def map_source(context: Context, variant: str) -> str:
    """The stage whose maps a variant cuts."""
    return "random_walk" if variant.startswith("random_walk") else maps_to_refine(context)


def background_score(context: Context, variant: str) -> float:
    """The background score of a variant: a number, or the best on the first evaluated split."""
    key = "walk_threshold" if variant.startswith("random_walk") else "maps_threshold"
    setting = context.cfg.refine[key]
    return best_threshold(context, map_source(context, variant)) if setting == "oracle" else float(setting)


def mask_path(folder: Path, variant: str, image_id: str) -> Path:
    """Where the pseudo mask of an image lies."""
    return folder / variant / f"{image_id}.png"


def write_pseudo_mask(threshold: float, crf: dict[str, Any] | None, job: Job) -> None:
    """Cuts the maps of one image at a background score, refines by a CRF if wanted, and writes the mask."""
    image_path, maps_path, target = job
    maps, image = load_maps(maps_path), read_image(image_path)
    size = (image.shape[0], image.shape[1])
    labels = argmax_labels(full_size(maps, size), maps.classes, threshold).numpy().astype(np.uint8)
    if crf is not None and len(maps.classes):
        labels = dense_crf(image, labels, **crf)
    write_mask(target, labels.astype(np.uint8))
