"""Scores of the pseudo masks of a split, and their gains over those of the first variant."""

from collections.abc import Sequence
from typing import Any

import torch

from ribseg.data.base import BaseDataset
from ribseg.data.io.masks import read_mask
from ribseg.metrics import (
    BoundaryF,
    bootstrap_miou,
    by_number_of_classes,
    by_object_size,
    interval,
    label_counts,
)
from ribseg.metrics.masks import mask_scores
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.stages.evaluate import EvaluateSettings, boundary_scores
from ribseg.pipeline.stages.variants import mask_path
from ribseg.store.artefact import Artefact

SCORES = "scores.json"


def score_split(
    session: Session, artefact: Artefact, folder: BaseDataset, variants: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Variant -> scores of its masks of a split: `mask_scores`, scores in groups, and gains over the first.

    Returns:
        Also "by_object_size" and "by_number_of_classes"; with evaluate.boundary "boundary_f" and
        "boundary_f_per_class"; and of all variants but the first "gain" of mIoU over it, with
        "gain_interval", the paired 95 % bootstrap interval over images.
    """
    settings, found, draws = session.settings[EvaluateSettings], {}, {}
    numbers = (folder.labels > 0).sum(1).tolist()
    for variant in variants:
        counts, boundaries = count_masks(session, artefact, folder, variant)
        found[variant] = mask_scores(counts) | {
            "by_object_size": by_object_size(counts),
            "by_number_of_classes": by_number_of_classes(counts, numbers),
        }
        if boundaries is not None:
            found[variant] |= boundary_scores(boundaries.counts)
        if len(variants) > 1:
            draws[variant] = bootstrap_miou(counts, settings.bootstrap, session.cfg.seed)
    first = variants[0]
    for variant in variants[1:]:
        gain = found[variant]["miou"] - found[first]["miou"]
        found[variant] |= {"gain": gain, "gain_interval": interval(draws[variant] - draws[first])}
    return found


def count_masks(
    session: Session, artefact: Artefact, folder: BaseDataset, variant: str
) -> tuple[torch.Tensor, BoundaryF | None]:
    """The (N, 3, C+1) `label_counts` of a variant's masks of a split, and their boundaries if asked for."""
    boundaries = BoundaryF(folder.num_classes) if session.settings[EvaluateSettings].boundary else None
    counts = []
    title = f"Scoring masks ({variant}) of {folder.split}"
    for image_id in session.track(folder.ids, title, len(folder), "mask"):
        mask = torch.from_numpy(read_mask(mask_path(artefact.folder, variant, image_id)))
        target = torch.from_numpy(folder.mask(image_id))
        counts.append(label_counts(mask, target, folder.num_classes))
        if boundaries is not None:
            boundaries.update(mask, target)
    return torch.stack(counts), boundaries
