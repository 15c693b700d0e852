"""The test of a segmenter: predicted masks as files, and one confusion matrix over all pixels."""

import dataclasses
import json
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from ribseg.data.base import BaseDataset
from ribseg.data.feed.views import WholeImages, only_item
from ribseg.data.io.masks import read_mask
from ribseg.files import missing_ids, write_json
from ribseg.metrics import confusion_matrix, counts_of
from ribseg.metrics.masks import mask_scores
from ribseg.models import Segmenter, load_segmenter
from ribseg.modules.callbacks import MaskWriter, Threads
from ribseg.modules.mask_prediction import MaskPredictionModule
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import map_sources
from ribseg.pipeline.recipe.training import check_complete, weights_file
from ribseg.pipeline.stages.chains import (
    FULL,
    active_sources,
    masks_stage,
    segmenter_name,
    segmenter_sources,
    segmenter_test_name,
)
from ribseg.pipeline.stages.scored_masks import SCORES
from ribseg.pipeline.stages.segmenter import WEIGHTS, tested_folders
from ribseg.store.artefact import Artefact
from ribseg.store.digest import plain
from ribseg.store.stage import CROPS, VIEWS, Stage
from ribseg.workers import cores, ordered_map


class SegmenterTestStage(Stage):
    """Segments the tested splits and scores the written masks.

    Args:
        source: as in `SegmenterStage`.
    """

    version = 2  # added: errors per class
    parts = ("segmenter", "data", "trainer", "tf32")
    neutral = (*CROPS, *VIEWS, "data.batch_size", "data.mean", "data.std")

    def __init__(self, source: str) -> None:
        self.source, self.name = source, segmenter_test_name(source)
        self.kind = self.name

    def wanted(self, context: Context) -> bool:
        """As its segmenter, if there are masks to score with."""
        possible = bool(context.data.eval_splits) and self.source in active_sources(context.cfg)
        return possible or self.name in context.cfg.run

    def required(self, context: Context) -> tuple[str, ...]:
        """The segmenter."""
        return (segmenter_name(self.source),)

    def data(self, context: Context) -> str:
        """The tested images and masks."""
        return " ".join(folder.fingerprint(masks=True) for folder in tested_folders(context).values())

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether the scores and all masks exist."""
        folders = tested_folders(context).values()
        return (artefact.folder / SCORES).is_file() and not any(
            missing_ids(artefact.folder / folder.split, folder.ids, ".png") for folder in folders
        )

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Segments the missing images, then scores the files."""
        segmenter = tested_segmenter(context, self.source)
        for folder in tested_folders(context).values():
            write_masks(context, artefact, segmenter, folder, artefact.folder / folder.split)
        context.on_first(lambda: self._score(context, artefact))
        return {"splits": list(tested_folders(context))}

    def _score(self, context: Context, artefact: Artefact) -> None:
        scores = {
            split: score_masks(context, artefact.folder / split, folder)
            for split, folder in tested_folders(context).items()
        }
        write_json(artefact.folder / SCORES, scores)


def tested_segmenter(context: Context, source: str) -> Segmenter:
    """The trained segmenter, with the configured inference settings."""
    segmenter = load_segmenter(weights_file(context.artefacts[segmenter_name(source)], WEIGHTS))
    return dataclasses.replace(segmenter, inference=plain(context.cfg.segmenter.test))


def write_masks(
    context: Context, artefact: Artefact, segmenter: Segmenter, folder: BaseDataset, place: Path
) -> None:
    """Segments the images without a mask file.

    Args:
        context: of the run.
        artefact: of the stage.
        segmenter: with its inference settings.
        folder: the images.
        place: gets `<image id>.png`.
    """
    missing = context.agree(missing_ids(place, folder.ids, ".png"))
    if not missing:
        return
    if len(missing) < len(folder):
        context.console.say(f"  resuming: {len(folder) - len(missing)} of {len(folder)} masks are done")
    workers, crf = crf_workers(context), segmenter.inference.get("crf")
    module = MaskPredictionModule(segmenter, defer_crf=workers > 0)
    callbacks = [
        MaskWriter(place, segmenter.palette, crf, max(workers, 1)),
        Threads(context.cfg.maps.threads),
    ]
    trainer = context.trainer(artefact.stage, artefact.folder, callbacks)
    trainer.predict(module, image_loader(context, missing, folder), return_predictions=False)
    context.wait()
    check_complete(missing_ids(place, folder.ids, ".png"), len(folder), f"mask in {place}")


def image_loader(context: Context, ids: Sequence[str], folder: BaseDataset) -> DataLoader:
    """Batches of one image; with fewer images than processes some repeat, as no process may be idle."""
    number = max(len(ids), context.processes)
    dataset = WholeImages(islice(cycle(ids), number), folder.image)
    return DataLoader(dataset, batch_size=1, collate_fn=only_item, num_workers=context.data.num_workers)


def crf_workers(context: Context) -> int:
    """Number of CRF worker processes per segmenting process."""
    number = context.cfg.segmenter.workers
    return max(1, cores() // context.processes) if number == "auto" else int(number)


def score_masks(context: Context, place: Path, folder: BaseDataset) -> dict[str, Any]:
    """Scores of the mask files of a split, from one confusion matrix over all pixels."""

    def count(image_id: str) -> torch.Tensor:
        mask = torch.from_numpy(read_mask(place / f"{image_id}.png", folder.num_classes))
        return confusion_matrix(mask, torch.from_numpy(folder.mask(image_id)), folder.num_classes)

    size = folder.num_classes + 1
    total = torch.zeros(size, size, dtype=torch.int64)
    results = ordered_map(count, folder.ids, context.cfg.evaluate.workers, threads=True)
    for matrix in context.track(results, f"Scoring masks of {folder.split}", len(folder), "mask"):
        total += matrix
    scores = mask_scores(counts_of(total)[None]) | {"images": len(folder), "confusion": total.tolist()}
    if scores["foreground"] == 0:
        context.console.say(
            f"the segmenter predicts only background on {folder.split}", "  warning", "yellow"
        )
    return scores


def segmenter_results(context: Context) -> dict[str, Any]:
    """Source -> scores, on top those of the first tested split, and the mIoU of its training masks."""
    results: dict[str, Any] = {}
    for source in segmenter_sources(context.cfg):
        artefact = context.artefacts.get(segmenter_test_name(source))
        if artefact is None or not artefact.finished:
            continue
        splits = json.loads((artefact.folder / SCORES).read_text())
        first = next(iter(splits.values()))
        results[source] = {"miou": first["miou"], "iou": first["iou"], "split": splits}
        results[source]["label"] = source_label(context, source)
        results[source]["masks"] = learnt_masks(context, source)
        results[source]["expected"] = (plain(context.cfg.segmenter.expected) or {}).get(source)
    return results


def source_label(context: Context, source: str) -> str:
    """The name of a segmenter's training masks in tables."""
    if source == FULL:
        return "ground truth (bound)"
    return f"pseudo masks of {map_sources(context.cfg)[source].label}"


def learnt_masks(context: Context, source: str) -> dict[str, Any] | None:
    """The mIoU of the pseudo masks on the first evaluated split; None for ground truth or without scores."""
    if source == FULL:
        return None
    path = context.artefacts[masks_stage(context.cfg, source)].folder / SCORES
    if not path.is_file():
        return None
    variant = context.cfg.refine.variants[-1]
    by_split = json.loads(path.read_text())[variant]
    split = next((name for name, value in by_split.items() if isinstance(value, dict)), None)
    return None if split is None else {"split": split, "variant": variant, "miou": by_split[split]["miou"]}
