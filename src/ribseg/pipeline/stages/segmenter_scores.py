"""The test of a segmenter: predicted masks as files, and one confusion matrix over all pixels."""

import dataclasses
import json
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from ribseg.data.base import BaseDataset
from ribseg.data.feed.views import only_item
from ribseg.data.io.masks import read_mask
from ribseg.files import missing_ids, write_json
from ribseg.metrics import confusion_matrix, counts_of
from ribseg.metrics.masks import mask_scores
from ribseg.models import Segmenter, load_segmenter
from ribseg.modules.callbacks import MaskWriter, Threads
from ribseg.modules.mask_prediction import MaskPredictionModule
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.stages.chains import FULL, active_sources, segmenter_test_name
from ribseg.pipeline.stages.scored_masks import SCORES
from ribseg.pipeline.stages.segmenter import WEIGHTS, SegmenterStage, tested_folders
from ribseg.store.artefact import Artefact
from ribseg.store.run import check_made
from ribseg.store.settings import counted
from ribseg.store.stage import Stage


class SegmenterTestStage(Stage[Session]):
    """Segments the tested splits and scores the written masks.

    Args:
        session: of the run.
        segmenter: the stage that trains it.
    """

    files = (SCORES,)
    version = 2  # added: errors per class

    def __init__(self, session: Session, segmenter: SegmenterStage) -> None:
        super().__init__(session)
        self.segmenter, self.source = segmenter, segmenter.source
        self.name = segmenter_test_name(segmenter.source)

    def wanted(self) -> bool:
        """As its segmenter, if there are masks to score with."""
        possible = bool(self.session.data.eval_splits) and self.source in active_sources(self.session)
        return possible or self.name in self.session.run.chosen

    def inputs(self) -> Sequence[Stage[Session]]:
        """The segmenter."""
        return [self.segmenter]

    def settings(self) -> dict[str, Any]:
        """Those of the segmenter."""
        common = self.session.counted("trainer", "tf32", data=("eval_splits",))
        return common | {"segmenter": counted(self.segmenter.cfg)}

    def data(self) -> str:
        """The tested images and masks."""
        return " ".join(folder.fingerprint(masks=True) for folder in tested_folders(self.session).values())

    def complete(self, artefact: Artefact) -> bool:
        """Whether the scores and all masks exist."""
        folders = tested_folders(self.session).values()
        return super().complete(artefact) and not any(
            missing_ids(artefact.folder / folder.split, folder.ids, ".png") for folder in folders
        )

    def check(self) -> None:
        """Checks the segmenter, unless the run does so anyway."""
        if self.segmenter.name not in self.session.run.chosen:
            self.segmenter.check()

    def work(self, target: Artefact) -> dict[str, Any]:
        """Segments the missing images, then scores the files."""
        folders = tested_folders(self.session)
        network = tested_segmenter(self.segmenter)
        for split, folder in folders.items():
            write_masks(self.session, target, network, folder, target.folder / split)

        def score() -> None:
            session, place = self.session, target.folder
            found = {split: score_masks(session, place / split, folders[split]) for split in folders}
            write_json(place / SCORES, found)

        self.session.group.on_first(score)
        return {"splits": list(folders)}

    def results(self) -> dict[str, Any]:
        """The scores, on top those of the first tested split; those of its masks, and of its validations."""
        splits = json.loads((self.artefact.folder / SCORES).read_text())
        first = next(iter(splits.values()))
        label = "ground truth (bound)"
        if self.source != FULL:
            label = f"pseudo masks of {self.session.sources[self.source].label}"
        return {
            "miou": first["miou"],
            "iou": first["iou"],
            "split": splits,
            "label": label,
            "masks": self._learnt_masks(),
            "validation": self.segmenter.artefact.facts["validation"],
            "expected": (self.segmenter.cfg.expected or {}).get(self.source),
        }

    def _learnt_masks(self) -> dict[str, Any] | None:
        """MIoU of the pseudo masks on the first evaluated split; None for ground truth or without scores."""
        masks = self.segmenter.masks
        if masks is None or not (masks.artefact.folder / SCORES).is_file():
            return None
        variant = masks.cfg.variants[-1]
        by_split = json.loads((masks.artefact.folder / SCORES).read_text())[variant]
        split = next((name for name, value in by_split.items() if isinstance(value, dict)), None)
        if split is None:
            return None
        return {"split": split, "variant": variant, "miou": by_split[split]["miou"]}


def tested_segmenter(stage: SegmenterStage) -> Segmenter:
    """The trained segmenter, with the configured inference settings."""
    segmenter = load_segmenter(stage.artefact.folder / WEIGHTS)
    return dataclasses.replace(segmenter, inference=dict(stage.cfg.test))


def write_masks(
    session: Session, target: Artefact, segmenter: Segmenter, folder: BaseDataset, place: Path
) -> None:
    """Segments the images without a mask file.

    Args:
        session: of the run.
        target: of the stage.
        segmenter: with its inference settings.
        folder: the images.
        place: gets `<image id>.png`.
    """
    missing = session.group.agree(missing_ids(place, folder.ids, ".png"))
    if not missing:
        return
    if len(missing) < len(folder):
        session.say(f"  resuming: {len(folder) - len(missing)} of {len(folder)} masks are done")
    crf = segmenter.inference.get("crf")
    backend = session.resolve("backend", (crf or {}).get("backend", "auto"))
    # A GPU's is faster than that of all cores.
    on_gpu = backend == "torch" and session.hardware.strategy.root_device.type != "cpu"
    module = MaskPredictionModule(segmenter, defer_crf=not on_gpu)
    writer = MaskWriter(place, segmenter.palette, crf, max(1, session.workers // session.processes))
    trainer = session.trainer(target.stage, target.folder, [writer, Threads()], logged=False)
    # With fewer images than processes some repeat, as no process may be idle.
    ids = islice(cycle(missing), max(len(missing), session.processes))
    dataset = Subset(folder, [folder.index(image_id) for image_id in ids])
    loader = DataLoader(dataset, collate_fn=only_item, num_workers=session.data.num_workers)
    trainer.predict(module, loader, return_predictions=False)
    session.group.wait()
    check_made(missing_ids(place, folder.ids, ".png"), len(folder), f"mask in {place}")


def score_masks(session: Session, place: Path, folder: BaseDataset) -> dict[str, Any]:
    """Scores of the mask files of a split, from one confusion matrix over all pixels."""

    def count(image_id: str) -> torch.Tensor:
        mask = torch.from_numpy(read_mask(place / f"{image_id}.png", folder.num_classes))
        return confusion_matrix(mask, torch.from_numpy(folder.mask(image_id)), folder.num_classes)

    size = folder.num_classes + 1
    total = torch.zeros(size, size, dtype=torch.int64)
    title = f"Scoring masks of {folder.split}"
    for matrix in session.map(count, folder.ids, title, "mask", "threads"):
        total += matrix
    scores = mask_scores(counts_of(total)[None]) | {"images": len(folder), "confusion": total.tolist()}
    if scores["foreground"] == 0:
        session.warn(f"the segmenter predicts only background on {folder.split}", "  warning")
    return scores
