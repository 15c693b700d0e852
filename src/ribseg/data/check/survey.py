"""A survey of a data set: counts, sizes, problems, oddities, and leaks between splits."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np

from ribseg.data.base import BaseDataset
from ribseg.data.check.dataset import Finding, explain_absent, grouped, inspect_files
from ribseg.data.check.mask_facts import MaskContent, MaskFacts, mask_facts
from ribseg.data.io.images import open_image
from ribseg.data.io.labels import labels_from_xml
from ribseg.data.voc import VOCFolder
from ribseg.errors import DataError, DatasetNotFoundError
from ribseg.progress import track
from ribseg.workers import io_threads, ordered_map

FEW, MANY = 20, 50  # a class is rare with fewer images, or if the most frequent has this many times as many
TINY, LONG = 64, 4.0  # odd sizes: shorter side in pixels, ratio of the sides


class ImageFacts(NamedTuple):
    """Facts of one image and its mask.

    Attributes:
        findings: problems.
        size: (height, width) in pixels, or None if it cannot be read.
        kind: format and mode, as "JPEG RGB"; "array" without a file; with "rotated" for EXIF rotation.
        digest: of the file's bytes.
        mask: content of its mask, None without a usable one.
    """

    findings: list[Finding]
    size: tuple[int, int] | None = None
    kind: str = ""
    digest: str = ""
    mask: MaskContent | None = None


@dataclass
class Survey:
    """The survey of a split.

    Attributes:
        split: its name.
        images: number of images.
        masks: number of images with a mask.
        unlabelled: number of images without a label.
        class_images: class -> number of images.
        sizes: smallest, median and largest height and width; empty if no image can be read.
        kinds: format and mode -> number of images.
        problems: kind -> errors, which must be corrected.
        oddities: kind -> unusual findings that are no errors.
        values: statistics of the masks.
        digests: image id -> that of its file's bytes.
    """

    split: str
    images: int
    masks: int
    unlabelled: int
    class_images: dict[str, int]
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    oddities: dict[str, list[str]] = field(default_factory=dict)
    values: MaskFacts | None = None
    digests: dict[str, str] = field(default_factory=dict)


def survey(dataset: BaseDataset, masks: bool, progress: bool | str = False) -> Survey:
    """Surveys all files of a split; problems are collected, not raised.

    Args:
        dataset: the split.
        masks: whether each image needs a mask; existing masks are checked in any case.
        progress: how progress is shown, see `ribseg.progress.check_progress`.
    """
    work = ordered_map(partial(_look, dataset, masks), dataset.ids, io_threads(), threads=True)
    facts = list(track(work, f"Looking at {dataset.split}", total=len(dataset), show=progress))
    counts = dataset.labels.sum(0)
    result = Survey(
        split=dataset.split,
        images=len(dataset),
        masks=sum(map(dataset.has_mask, dataset.ids)),
        unlabelled=int((~dataset.labels.any(1)).sum()),
        class_images={name: int(count) for name, count in zip(dataset.classes, counts, strict=True)},
        sizes=_sizes([fact.size for fact in facts if fact.size]),
        kinds=dict(Counter(fact.kind for fact in facts if fact.kind).most_common()),
    )
    result.values = mask_facts([fact.mask for fact in facts], dataset.labels) if result.masks else None
    result.problems = grouped(finding for fact in facts for finding in fact.findings)
    explain_absent(dataset, result.problems)
    odd = [*_odd_sizes(dataset.ids, facts), *_odd_labels(dataset, facts), *_odd_classes(result)]
    result.oddities = grouped(odd)
    result.digests = {i: fact.digest for i, fact in zip(dataset.ids, facts, strict=True) if fact.digest}
    return result


def duplicates(surveys: Sequence[Survey]) -> dict[str, list[str]]:
    """Kind -> images whose files have the same bytes: within a split, or in two splits (a leak)."""
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for one in surveys:
        for image_id, digest in one.digests.items():
            places[digest].append((one.split, image_id))
    found: dict[str, list[str]] = {}
    for same in places.values():
        # An id in two lists is one image; see `overlaps`.
        if len({image_id for _, image_id in same}) < 2:
            continue
        splits = sorted({split for split, _ in same})
        kind = "the same image in " + (" and ".join(splits) if len(splits) > 1 else f"{splits[0]} twice")
        found.setdefault(kind, []).append(" = ".join(sorted({image_id for _, image_id in same})))
    return found


def overlaps(lists: Mapping[str, Collection[str]]) -> tuple[dict[str, list[str]], list[str]]:
    """Images that are in two lists.

    Args:
        lists: split -> image ids.

    Returns:
        Leaks, by kind as in `duplicates`: images in two lists of which neither contains the other. And a line
        for each list within another, as for an evaluation on training images.
    """
    leaks: dict[str, list[str]] = {}
    within: list[str] = []
    for (one, ids), (other, others) in combinations(lists.items(), 2):
        common = set(ids) & set(others)
        if common and len(common) in (len(set(ids)), len(set(others))):
            small, large = (one, other) if len(set(ids)) == len(common) else (other, one)
            within.append(f"all {len(common)} images of {small} are in {large}")
        elif common:
            leaks["the same image in " + " and ".join(sorted((one, other)))] = sorted(common)
    return leaks, within


def _look(dataset: BaseDataset, masks: bool, image_id: str) -> ImageFacts:
    findings, mask = inspect_files(dataset, masks or dataset.has_mask(image_id), True, image_id)
    if any(kind in ("absent images", "unreadable images") for kind, _ in findings):
        return ImageFacts(findings, mask=mask)
    header, path = dataset.header(image_id), dataset.image_path(image_id)
    if path is None:
        pixels = hashlib.sha256(f"{header.size}".encode() + dataset.image(image_id).tobytes())
        return ImageFacts(findings, header.size, "array", pixels.hexdigest(), mask)
    with open_image(path) as image:
        kind = f"{image.format} {image.mode}" + (" rotated" if header.size != header.stored else "")
    return ImageFacts(findings, header.size, kind, hashlib.sha256(path.read_bytes()).hexdigest(), mask)


def _sizes(sizes: Sequence[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    if not sizes:
        return {}
    table = np.array(sizes)
    rows = {"smallest": table.min(0), "median": np.median(table, 0), "largest": table.max(0)}
    return {name: (int(row[0]), int(row[1])) for name, row in rows.items()}


def _odd_sizes(ids: Sequence[str], facts: Sequence[ImageFacts]) -> Iterable[Finding]:
    for image_id, fact in zip(ids, facts, strict=True):
        if fact.size is None:
            continue
        short, long = sorted(fact.size)
        text = f"{image_id}: {fact.size[1]} x {fact.size[0]} (width x height)"
        if short < TINY:
            yield f"shorter side below {TINY} pixels: a few locations on the feature map", text
        if long > LONG * short:
            yield f"one side more than {LONG:g} times the other", text


def _odd_labels(dataset: BaseDataset, facts: Sequence[ImageFacts]) -> Iterable[Finding]:
    """Images whose labels differ from their masks or XML files."""
    for image_id, row, fact in zip(dataset.ids, dataset.labels, facts, strict=True):
        if fact.mask is not None:
            mask = np.zeros_like(row)
            mask[[c - 1 for c in fact.mask.classes]] = True
            yield from _difference(dataset, image_id, row, mask, "masks")
    if not isinstance(dataset, VOCFolder):
        return
    try:
        xml = labels_from_xml(dataset.root / "Annotations", dataset.ids, dataset.classes)
    except DatasetNotFoundError:
        return  # no XML files to compare with
    except DataError as error:
        yield "XML files that cannot be compared with the labels", str(error).replace("\n", " ")
        return
    for image_id, row, other in zip(dataset.ids, dataset.labels, xml, strict=True):
        yield from _difference(dataset, image_id, row, other, "XML files")


def _difference(
    dataset: BaseDataset, image_id: str, labels: np.ndarray, other: np.ndarray, source: str
) -> Iterable[Finding]:
    if (labels == other).all():
        return
    signs = zip(dataset.classes, labels, other, strict=True)
    parts = [f"{'+' if mine else '-'}{name}" for name, mine, its in signs if mine != its]
    kind = f"labels differ from the {source} (+ only in the labels, - only there)"
    yield kind, f"{image_id}: {' '.join(parts)}"


def _odd_classes(result: Survey) -> Iterable[Finding]:
    most = max(result.class_images.values())
    for name, count in result.class_images.items():
        if count == 0:
            yield "classes without an image", name
        elif count < FEW or most > MANY * count:
            yield "rare classes", f"{name}: {count} images"
