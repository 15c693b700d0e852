"""Notes on valid but unusual data that change what a run's results mean."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from ribseg.data.base import BaseDataset
from ribseg.data.check.mask_facts import MaskFacts
from ribseg.data.check.mask_notes import mask_notes
from ribseg.data.check.note import Note, first_of, names_and_counts
from ribseg.data.feed.sampler import ReferenceSampler
from ribseg.data.io.labels import FROM_MASKS
from ribseg.data.splits import DataSplits

FEW = 20  # masks that are read for a message


def data_results(
    data: DataSplits, values: Mapping[str, MaskFacts], trained: bool, drawn: bool, searched: bool
) -> dict[str, Any]:
    """The data facts: "data" in `results.json`.

    Args:
        data: of the run.
        values: evaluated split -> facts of its masks; empty if they were not decoded.
        trained: whether the classifier is trained on these images, not loaded.
        drawn: whether a method of the run draws reference images.
        searched: whether the learning rate of such a method is searched.

    Returns:
        "notes": rows of "key", "found", "means", "helps"; "labels", "masks": split -> where they come from.
        If a method draws reference images, also
        "without_references": the number of "images" with a class; how many of them are "without" any
        reference image, in total, by split ("splits"), and in the training split ("train").
    """
    counts = without_references(data) if drawn else {}
    notes = [
        *label_notes(data),
        *reference_notes(data, counts, searched),
        *class_notes(data, trained),
        *split_notes(data),
    ]
    for split, facts in values.items():
        notes += mask_notes(split, facts, data.train.classes)
    result: dict[str, Any] = {"notes": [asdict(note) for note in notes], **sources(data)}
    return result | ({"without_references": counts} if counts else {})


def sources(data: DataSplits) -> dict[str, dict[str, str]]:
    """Where labels and masks come from: "labels" and "masks", each split -> a text."""
    found: dict[str, dict[str, str]] = {"labels": {}, "masks": {}}
    for folder in data.splits:
        masks = sum(map(folder.has_mask, folder.ids))
        found["labels"][folder.split] = folder.labels_source
        found["masks"][folder.split] = f"{folder.masks_source}, {masks} of {len(folder)} images"
    return found


def label_notes(data: DataSplits) -> Iterator[Note]:
    """A note on labels that were taken from the ground truth."""
    splits = [folder.split for folder in data.splits if folder.labels_source == FROM_MASKS]
    if splits:
        yield Note(
            "labels_from_masks",
            f"the image-level labels of {' and '.join(splits)} were taken from the ground-truth masks",
            "Results are an upper bound: weak supervision has no masks, and labels that people give differ.",
            "Give labels by data.labels=FILE, if there are any.",
        )


def source_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Labels, and masks, with where they come from, by `sources`; once where splits do not differ."""
    for what in ("labels", "masks"):
        texts = facts.get(what, {})
        same = len(set(texts.values())) == 1
        shown = [*set(texts.values())] if same else [f"{split}: {text}" for split, text in texts.items()]
        if shown:
            yield what, "; ".join(shown)


def print_sources(say: Callable[[str, str], object], facts: Mapping[str, Any]) -> None:
    """Says where labels and masks come from."""
    for what, text in source_lines(facts):
        say(text, what)


def print_notes(say: Callable[[str, str, str], object], facts: Mapping[str, Any]) -> None:
    """Says the notes of `data_results`; `say` takes a text, what it is about, and a colour."""
    for row in facts["notes"]:
        say(str(Note(**row)), "data", "yellow")


def without_references(data: DataSplits) -> dict[str, Any]:
    """The number of images for which no reference image exists; see `data_results`."""
    seen = set[str]()
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


def reference_notes(data: DataSplits, counts: Mapping[str, Any], searched: bool) -> Iterator[Note]:
    """A note on images without any reference image."""
    if not counts.get("without"):
        return
    search, labelled = "", int(data.train.labels.any(1).sum())
    if searched and counts["train"]:
        search = f" So does the search of rib.lr=auto: {counts['train']} of its {labelled} images have none."
    by_split = ", ".join(f"{split} {number}" for split, number in counts["splits"].items() if number)
    yield Note(
        "no_reference_image",
        f"{counts['without']} of {counts['images']} images with a class have no reference image "
        f"({by_split}): every image of {data.train.split} shares a class with them",
        "RIB adapts to them alone, without the reference images that the method requires." + search,
        "Images without a label are references for all others: add some to the list (an empty row in a CSV), "
        "or set rib.references=0 to use none at all.",
    )


def class_notes(data: DataSplits, trained: bool) -> Iterator[Note]:
    """Notes on classes that no image has, or that a classifier cannot learn from these images."""
    train, classes, learnt = data.train.labels.sum(0), data.train.classes, data.train.split
    others = {split: folder.labels.sum(0) for split, folder in data.evals.items() if split != learnt}
    for split, counts in others.items() if trained else ():
        only = {int(c): int(counts[c]) for c in np.flatnonzero((train == 0) & (counts > 0))}
        if only:
            yield Note(
                "class_without_training_image",
                f"{names_and_counts(classes, only)} of {split}, but no image of {learnt}",
                "The class is never learnt, its maps are accidental (a segmenter never finds it), and its "
                f"IoU counts in the mIoU of {split}.",
                f"Put images of it into {learnt}, or take it out of classes.txt, labels and masks.",
            )
    anywhere = train + sum(others.values(), np.zeros_like(train))
    absent = [repr(name) for name, images in zip(classes, anywhere, strict=True) if not images]
    if absent:
        yield Note(
            "class_without_image",
            f"no image of any split has {first_of(absent)}",
            "The classifier only learns to deny the class; it has no IoU and is in no mean, unless a "
            "segmenter predicts it somewhere.",
            "If images show it, compare the spelling in labels and classes.txt; else take it out of "
            "classes.txt.",
        )
    always = {int(c): int(train[c]) for c in np.flatnonzero(train == len(data.train))}
    if always and trained:
        yield Note(
            "class_in_every_image",
            f"{names_and_counts(classes, always)}: every image of {learnt}",
            "The classifier can answer yes without looking, so that its maps need not lie on the class.",
            f"Add images without the class to {learnt}; they may be without any label.",
        )


def split_notes(data: DataSplits) -> Iterator[Note]:
    """Notes on splits without labels, and on splits that overlap."""
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
        learnt = {data.train.split, data.pseudo.split}
        meant = bool(learnt & {one, other}) and not {one, other} <= set(data.evals)
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
    text = f"no image of {folder.split} has a class, nothing to learn; check classes and data.labels={labels}"
    masks = [image_id for image_id in folder.ids if folder.has_mask(image_id)][:FEW]
    if labels not in ("auto", "mask") or not masks:
        return text
    found = sorted({int(value) for image_id in masks for value in np.unique(folder.mask(image_id))})
    return (
        f"{text}. The first {len(masks)} masks hold the ids {found}; expected 0 for background, 1 for the "
        "first name in classes.txt, and 255 only for pixels to ignore"
    )
