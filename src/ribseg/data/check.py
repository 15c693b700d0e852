"""Looking through a data set before work begins: what is wrong shows at once, not at image 3,000."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from rich.progress import track

from ribseg.data.images import read_header, read_image
from ribseg.data.masks import mask_size, read_mask
from ribseg.data.voc import VOCFolder
from ribseg.errors import DataError, list_problems

Finding = tuple[str, str]  # kind, what
OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class CheckReport:
    """What was looked at and found good.

    Attributes:
        images: number of images.
        masks: number of masks; 0 if they were not looked at.
        unlabelled: ids of images without any label. They are no error: stages that need a class skip them.
        skipped: id -> what is wrong with it; empty unless `on_error` is "skip".
    """

    images: int
    masks: int
    unlabelled: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)


def check_dataset(
    dataset: VOCFolder,
    masks: bool = False,
    full: bool = False,
    workers: int | None = None,
    progress: bool = False,
    on_error: OnError = "raise",
) -> CheckReport:
    """Checks that all images, and the masks if asked for, are there and fit together.

    Args:
        dataset: the split to look through.
        masks: whether each image needs a mask.
        full: decode every file; otherwise the headers only (sizes and modes; not truncation, not class ids).
        workers: threads (Pillow decodes outside of the interpreter's lock); None for one per core, at most 8.
        progress: show a progress bar.
        on_error: "skip" tells what is wrong in the report, and does not count these images.

    Raises:
        DataError: lists, by kind, the count and the first few of what is wrong; with "skip" only if no image
            is good.
    """
    inspect = partial(_inspect, dataset, masks, full)
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        results: Iterable[list[Finding]] = pool.map(inspect, dataset.ids)
        if progress:
            results = track(results, f"Checking {dataset.split}", total=len(dataset))
        found = {image_id: items for image_id, items in zip(dataset.ids, results, strict=True) if items}
    if found and (on_error == "raise" or len(found) == len(dataset)):
        raise DataError(_listed(dataset, found, on_error))
    unlabelled = tuple(
        image_id
        for image_id, row in zip(dataset.ids, dataset.labels, strict=True)
        if not row.any() and image_id not in found
    )
    good = len(dataset) - len(found)
    skipped = {image_id: "; ".join(map(": ".join, items)) for image_id, items in found.items()}
    return CheckReport(good, good if masks else 0, unlabelled, skipped)


def _listed(dataset: VOCFolder, found: dict[str, list[Finding]], on_error: OnError) -> str:
    problems: dict[str, list[str]] = defaultdict(list)
    for kind, what in (finding for findings in found.values() for finding in findings):
        problems[kind].append(what)
    count = sum(map(len, problems.values()))
    headline = f"the split {dataset.split!r} of {dataset.root}: {count} problems in {len(dataset)} images"
    folders = " or ".join(map(str, dataset.images_dirs))
    skipping = "data.on_error=skip does it for this run" if on_error == "raise" else "skipping leaves none"
    advice = (
        f"Complete or mend the files, or take the images off the list; {skipping}. Images belong into "
        f"{folders}, masks into {dataset.masks_dir}; ids are file names without ending."
    )
    return list_problems(headline, problems, advice)


def _inspect(dataset: VOCFolder, masks: bool, full: bool, image_id: str) -> list[Finding]:
    return [
        *image_findings(dataset, full, image_id),
        *(mask_findings(dataset, full, image_id) if masks else ()),
    ]


def image_findings(dataset: VOCFolder, full: bool, image_id: str) -> Iterator[Finding]:
    """What is wrong with an image; `full` decodes it."""
    if not dataset.has_image(image_id):
        yield "absent images", image_id
        return
    try:
        (read_image if full else read_header)(dataset.image_path(image_id))
    except DataError as error:
        yield "unreadable images", str(error)


def mask_findings(dataset: VOCFolder, full: bool, image_id: str) -> Iterator[Finding]:
    """What is wrong with an image's mask; `full` decodes it."""
    if not dataset.has_mask(image_id):
        yield "absent masks", image_id
        return
    path = dataset.mask_path(image_id)
    try:
        size = read_mask(path, dataset.num_classes).shape if full else mask_size(path)
    except DataError as error:
        yield "unusable masks", str(error)
        return
    try:
        header = read_header(dataset.image_path(image_id))
    except DataError:
        return  # the image's own finding
    if size != header.size:
        hint = ""
        if size == header.stored:
            hint = " (it fits the image before its EXIF rotation: rotate the mask or drop the EXIF tag)"
        yield (
            "masks of another size than their image",
            f"{path}: {_text(size)}, image {_text(header.size)}{hint}",
        )


def _text(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]} (width x height)"
