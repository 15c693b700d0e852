"""Checking all files of a data set at once, so that problems do not occur in the middle of a run."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from ribseg.data.base import BaseDataset
from ribseg.data.check.mask_facts import MaskContent, MaskFacts, mask_content, mask_facts
from ribseg.data.check.near_misses import explained
from ribseg.data.io.images import check_pixels
from ribseg.data.io.masks import mask_colours, mask_size
from ribseg.data.voc import VOCFolder
from ribseg.errors import DataError, list_problems, reason
from ribseg.progress import track
from ribseg.workers import io_threads, ordered_map

Finding = tuple[str, str]  # kind, what
OnError = Literal["raise", "skip"]
UNREADABLE = (DataError, OSError, ValueError, LookupError)  # the last three from a user's data set


@dataclass(frozen=True)
class CheckReport:
    """The result of a check.

    Attributes:
        images: number of good images.
        masks: number of good masks; 0 if they were not checked.
        unlabelled: ids of images without any label; not an error, as stages that need a class skip them.
        skipped: id -> what is wrong with it; empty unless `on_error` is "skip".
        values: facts of the masks, if they were decoded.
    """

    images: int
    masks: int
    unlabelled: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    values: MaskFacts | None = None


def check_dataset(
    dataset: BaseDataset,
    masks: bool = False,
    full: bool = False,
    workers: int | None = None,
    progress: bool | str = False,
    on_error: OnError = "raise",
) -> CheckReport:
    """Checks that all images, and optionally the masks, exist, can be read, and match in size.

    Args:
        dataset: the split to check.
        masks: whether each image needs a mask.
        full: decode every file; otherwise read only headers (sizes and modes; not truncation, not class ids).
        workers: threads (Pillow releases the GIL for decoding); None for one per core, at most 8.
        progress: how progress is shown, see `ribseg.progress.check_progress`.
        on_error: "skip" reports bad images in `skipped` instead of raising.

    Raises:
        DataError: lists the problems by kind, with counts and the first few; with "skip" only if no image is
            good.
    """
    inspect = partial(inspect_files, dataset, masks, full)
    results = ordered_map(inspect, dataset.ids, workers or io_threads(), threads=True)
    shown = track(results, f"Checking {dataset.split}", len(dataset), progress)
    findings, looks = zip(*shown, strict=True)
    found = {image_id: items for image_id, items in zip(dataset.ids, findings, strict=True) if items}
    if found and (on_error == "raise" or len(found) == len(dataset)):
        raise DataError(_listed(dataset, found, on_error))
    rows = zip(dataset.ids, dataset.labels, strict=True)
    unlabelled = tuple(image_id for image_id, row in rows if not row.any() and image_id not in found)
    good = len(dataset) - len(found)
    skipped = {image_id: "; ".join(map(": ".join, items)) for image_id, items in found.items()}
    good_looks = [None if items else look for items, look in zip(findings, looks, strict=True)]
    values = mask_facts(good_looks, dataset.labels) if masks and full else None
    return CheckReport(good, good if masks else 0, unlabelled, skipped, values)


def _listed(dataset: BaseDataset, found: dict[str, list[Finding]], on_error: OnError) -> str:
    problems = grouped(finding for findings in found.values() for finding in findings)
    explain_absent(dataset, problems)
    count = sum(map(len, problems.values()))
    headline = f"the split {dataset.split!r} of {dataset.origin}: {count} problems in {len(dataset)} images"
    skipping = "data.on_error=skip does it for this run" if on_error == "raise" else "skipping leaves none"
    advice = f"Complete or correct the files, or take the images off the list; {skipping}."
    if isinstance(dataset, VOCFolder):
        folders = " or ".join(map(str, dataset.images_dirs))
        places = f"Images belong into {folders}, masks into {dataset.masks_dir}"
        advice += f" {places}; ids are file names without ending."
    return list_problems(headline, problems, advice)


def grouped(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """Kind -> its findings."""
    groups: dict[str, list[str]] = defaultdict(list)
    for kind, what in findings:
        groups[kind].append(what)
    return dict(groups)


def explain_absent(dataset: BaseDataset, problems: dict[str, list[str]]) -> None:
    """Adds to the ids of missing files the name of a similar file, in place."""
    if not isinstance(dataset, VOCFolder):
        return
    for kind, known in (("absent images", dataset.image_ids), ("absent masks", dataset.mask_ids)):
        if kind in problems:
            problems[kind] = explained(problems[kind], known)


def inspect_files(
    dataset: BaseDataset, masks: bool, full: bool, image_id: str
) -> tuple[list[Finding], MaskContent | None]:
    """The problems of an image, and of its mask if asked for, with its content; `full` decodes both."""
    findings: list[Finding] = []
    try:
        if not dataset.has_image(image_id):
            findings.append(("absent images", image_id))
        elif full:
            check_pixels(dataset.image(image_id), image_id)
        else:
            dataset.size(image_id)
    except UNREADABLE as error:
        findings.append(("unreadable images", _message(error, image_id)))
    if not masks:
        return findings, None
    wrong, look = _inspect_mask(dataset, full, image_id)
    return findings + wrong, look


def _inspect_mask(
    dataset: BaseDataset, full: bool, image_id: str
) -> tuple[list[Finding], MaskContent | None]:
    """The problems of an image's mask, and its content if it is usable; `full` decodes it."""
    if not dataset.has_mask(image_id):
        return [("absent masks", image_id)], None
    path, look = dataset.mask_path(image_id), None
    try:
        if full:
            palette = None if path is None else mask_colours(path)
            look = mask_content(dataset.mask(image_id), palette)
        size = look.size if look else mask_size(path) if path else dataset.mask(image_id).shape
    except UNREADABLE as error:
        return [("unusable masks", _message(error, image_id))], None
    try:
        header = dataset.header(image_id)
    except UNREADABLE:
        return [], look  # reported for the image
    if size == header.size:
        return [], look
    what = f"{path or image_id}: {_text(size)}, image {_text(header.size)}"
    if size == header.stored:
        what += " (it fits the image before its EXIF rotation: rotate the mask or drop the EXIF tag)"
    return [("masks of another size than their image", what)], None


def _message(error: Exception, image_id: str) -> str:
    """The message of an error, with the image id unless it is a DataError, which names the file."""
    return str(error) if isinstance(error, DataError) else f"{image_id}: {reason(error)}"


def _text(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]} (width x height)"
