"""Notes on valid but unusual data that change what a run's results mean."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from ribseg.data.base import BaseDataset
from ribseg.data.check.mask_facts import MaskFacts
from ribseg.data.feed.references import ReferenceSampler
from ribseg.modules.data_module import WSSSDataModule
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import Entry
from ribseg.pipeline.report.mask_notes import mask_notes
from ribseg.pipeline.report.notes import Note, names_and_counts

FEW = 20  # masks that are read for a message


def data_results(
    context: Context, values: Mapping[str, MaskFacts], drawing: Sequence[Entry]
) -> dict[str, Any]:
    """The data facts: "data" in `results.json`.

    Args:
        context: of the run.
        values: evaluated split -> facts of its masks; empty if they were not decoded.
        drawing: methods of the run that draw reference images.

    Returns:
        "notes": rows of "key", "found", "means", "helps". If a method draws reference images, also
        "without_references": the number of "images" with a class; how many of them are "without" any
        reference image, in total, by split ("splits"), and in the training split ("train").
    """
    counts = without_references(context) if drawing else {}
    notes = [*reference_notes(context, counts, drawing), *class_notes(context), *split_notes(context)]
    for split, facts in values.items():
        notes += mask_notes(split, facts, context.data.classes)
    result: dict[str, Any] = {"notes": [asdict(note) for note in notes]}
    return result | ({"without_references": counts} if counts else {})


def print_notes(context: Context, facts: Mapping[str, Any]) -> None:
    """Prints the notes of data facts, see `data_results`."""
    for row in facts["notes"]:
        context.console.say(str(Note(**row)), "data", "yellow")


def without_references(context: Context) -> dict[str, Any]:
    """The number of images for which no reference image exists; see `data_results`."""
    data, seen = context.data, set[str]()
    sampler = ReferenceSampler(data.train.ids, data.train.labels)
    splits, images, train = {}, 0, 0
    for folder in data.splits:
        lacking = folder.labels.any(1) & ~sampler.has_references(folder.labels)
        new = np.array([image_id not in seen for image_id in folder.ids], dtype=bool)
        seen.update(folder.ids)
        images += int((folder.labels.any(1) & new).sum())
        train = int(lacking.sum()) if folder is data.train else train
        splits[folder.split] = int((lacking & new).sum())
    return {"images": images, "without": sum(splits.values()), "splits": splits, "train": train}


def reference_notes(context: Context, counts: Mapping[str, Any], drawing: Sequence[Entry]) -> Iterator[Note]:
    """A note on images without any reference image."""
    if not counts.get("without"):
        return
    data, searched = context.data, ""
    labelled = int(data.train.labels.any(1).sum())
    if any(entry.searches_rate for entry in drawing) and counts["train"]:
        searched = (
            f" So does the search of rib.lr=auto: of the {labelled} training images that it draws from, "
            f"{counts['train']} have none."
        )
    by_split = ", ".join(f"{split} {number}" for split, number in counts["splits"].items() if number)
    yield Note(
        "no_reference_image",
        f"{counts['without']} of {counts['images']} images with a class have no reference image "
        f"({by_split}): every image of {data.train_split} shares a class with them",
        "RIB adapts to them alone, without the reference images that the method requires." + searched,
        "Images without a label are references for all others: add some to the list (an empty row in a CSV), "
        "or set rib.references=0 to use none at all.",
    )


def class_notes(context: Context) -> Iterator[Note]:
    """Notes on classes that no image has, or that a classifier cannot learn from these images."""
    data = context.data
    train = data.train.labels.sum(0)
    others = {s: folder.labels.sum(0) for s, folder in data.evals.items() if s != data.train_split}
    trained = not any(context.cfg.classifier.get(name) for name in ("checkpoint", "official_checkpoint"))
    if trained:
        yield from _untrained_class_notes(data, train, others)
    anywhere = train + sum(others.values(), np.zeros_like(train))
    absent = {int(c): 0 for c in np.flatnonzero(anywhere == 0)}
    if absent:
        yield Note(
            "class_without_image",
            f"no image of any split has {names_and_counts(data.classes, absent, counted=False)}",
            "The classifier only learns to deny the class; it has no IoU and is in no mean, unless a "
            "segmenter predicts it somewhere.",
            "If images show it, compare the spelling in labels and classes.txt; else take it out of "
            "classes.txt.",
        )
    always = {int(c): int(train[c]) for c in np.flatnonzero(train == len(data.train))}
    if always and trained:
        yield Note(
            "class_in_every_image",
            f"{names_and_counts(data.classes, always)}: every image of {data.train_split}",
            "The classifier can answer yes without looking, so that its maps need not lie on the class.",
            f"Add images without the class to {data.train_split}; they may be without any label.",
        )


def _untrained_class_notes(
    data: WSSSDataModule, train: np.ndarray, others: Mapping[str, np.ndarray]
) -> Iterator[Note]:
    """Notes on classes of evaluated splits that no training image has; arrays: (C,) images per class."""
    for split, counts in others.items():
        only = {int(c): int(counts[c]) for c in np.flatnonzero((train == 0) & (counts > 0))}
        if only:
            yield Note(
                "class_without_training_image",
                f"{names_and_counts(data.classes, only)} of {split}, but no image of {data.train_split}",
                "The class is never learnt, its maps are accidental (a segmenter never finds it), and its "
                f"IoU counts in the mIoU of {split}.",
                f"Put images of it into {data.train_split}, or take it out of classes.txt, labels and masks.",
            )


def split_notes(context: Context) -> Iterator[Note]:
    """Notes on splits without labels, and on splits that overlap."""
    data = context.data
    for split, folder in data.evals.items():
        if not folder.labels.any():
            yield Note(
                "split_without_labels",
                f"none of the {len(folder)} images of {split} has a label",
                "No localization map is made for them: they count as background altogether, and a threshold "
                "chosen on them is arbitrary.",
                "Give their classes in the label file, or take the split out of data.eval_splits.",
            )
    ids = {folder.split: set(folder.ids) for folder in data.splits}
    for one, other in combinations(ids, 2):
        common = len(ids[one] & ids[other])
        # Pseudo masks are made from maps of training images, so a list within the training list is intended.
        learnt = {data.train_split, data.pseudo_split}
        meant = bool(learnt & {one, other}) and not {one, other} <= set(data.eval_splits)
        if common and not (meant and common == min(len(ids[one]), len(ids[other]))):
            yield Note(
                "splits_overlap",
                f"{common} images are both in {one} ({len(ids[one])}) and in {other} ({len(ids[other])})",
                "A score on one of them is no score on unseen images, and a threshold that was chosen on "
                "the other one is not held out.",
                "Take them off one of the lists.",
            )


def nothing_to_learn(folder: BaseDataset, labels: str) -> str:
    """The error message for training images without any class; for labels from masks, with their ids."""
    text = (
        f"no image of {folder.split} has a class: there is nothing to learn; check the class names and "
        f"data.labels={labels}"
    )
    masks = [image_id for image_id in folder.ids if folder.has_mask(image_id)][:FEW]
    if labels not in ("auto", "mask") or not masks:
        return text
    found = sorted({int(value) for image_id in masks for value in np.unique(folder.mask(image_id))})
    return (
        f"{text}. The first {len(masks)} masks hold the ids {found}; expected 0 for background, 1 for the "
        "first name in classes.txt, and 255 only for pixels to ignore"
    )
