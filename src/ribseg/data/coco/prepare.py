"""Preparing COCO in its official layout for `VOCFolder`: semantic masks, labels and lists, made once."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ribseg.data.coco.instances import Instances, read_instances
from ribseg.data.coco.masks import Job, write_semantic_mask
from ribseg.data.coco.policy import Crowd, Overlap, Policy, Unannotated, chosen_policy
from ribseg.data.io.labels import write_label_csv
from ribseg.errors import ConfigError, DataError, DatasetNotFoundError, list_problems
from ribseg.files import atomic_write, scan_folder, write_json
from ribseg.progress import track
from ribseg.workers import ordered_map, worker_count

FOLDER = Path("outputs/coco")
MANIFEST = "coco.json"
Listing = dict[str, list[int]]  # image id -> its labels in 1..C, ascending
MASKS, LISTS = "SegmentationClass", "ImageSets/Segmentation"
# Images in the official files of 2014, all and with at least one instance.
OFFICIAL = {"train2014": (82_783, 82_081), "val2014": (40_504, 40_137)}
FEW = 64  # masks; for fewer, starting processes takes longer than drawing


class Prepared(dict[str, Any]):
    """Arguments of `WSSSDataModule`, with facts for the results.

    Attributes:
        facts: name and settings of the policy, and the target folder.
    """

    def __init__(self, arguments: Mapping[str, Any], facts: dict[str, Any]) -> None:
        super().__init__(arguments)
        self.facts = facts


def prepare_coco(
    root: str | Path,
    target: str | Path | None = None,
    splits: Sequence[str] = ("train2014", "val2014"),
    policy: str = "rib",
    crowd: Crowd | None = None,
    overlap: Overlap | None = None,
    unannotated: Unannotated | None = None,
    workers: int | Literal["auto"] = "auto",
    progress: bool | str = True,
) -> Prepared:
    """Writes masks, lists, class names and labels of COCO; existing masks are kept.

    Category ids, up to 90 with gaps, become 1..80 in their order; spaces in names become underscores.

    Args:
        root: folder with `<split>/*.jpg` and `annotations/instances_<split>.json`.
        target: gets `SegmentationClass/<id>.png`, `ImageSets/Segmentation/<split>.txt`, `classes.txt`,
            `image_labels.csv`, and `coco.json` with policy and counts. None for a folder in outputs/coco that
            is named after the policy.
        splits: names of the splits.
        policy: a name in `policy.PRESETS`.
        crowd: see `policy.Policy`; None for the preset's.
        overlap: see `policy.Policy`; None for the preset's.
        unannotated: see `policy.Policy`; None for the preset's.
        workers: processes, or "auto": one per core.
        progress: how progress is shown, see `ribseg.progress.check_progress`.

    Returns:
        Arguments of `WSSSDataModule`, with the policy as `facts`.

    Raises:
        ConfigError: unknown policy, pycocotools is not installed, or the target has other content.
        DatasetNotFoundError: a folder or file is missing.
        DataError: lists broken entries in the annotations.
    """
    if isinstance(splits, str):
        raise ConfigError(f"expected splits as a list of names, got {splits!r}: prepare.splits=[{splits}]")
    chosen, name = chosen_policy(policy, crowd=crowd, overlap=overlap, unannotated=unannotated)
    root, target = Path(root), Path(target or FOLDER / chosen.folder)
    stamp = {"policy": asdict(chosen), "annotations": {split: _state(root, split) for split in splits}}
    if not _is_ready(target, stamp):
        if find_spec("pycocotools") is None:
            raise ConfigError("COCO's masks are drawn by pycocotools: pip install 'ribseg[coco]'")
        names, listings, counts = _read_splits(root, splits, chosen)
        # From here on the folder belongs to these annotations and this policy.
        write_json(target / MANIFEST, stamp)
        for split, listing in listings.items():
            draw_masks(_annotations(root, split), set(listing), target / MASKS, chosen, workers, progress)
        _write_tables(target, names, listings)
        write_json(target / MANIFEST, stamp | {"preset": name, "counts": counts})
    made = target.absolute()
    return Prepared(
        {
            "root": str(root),
            "images_dir": list(splits),
            "masks_dir": str(made / MASKS),
            "lists_dir": str(made / LISTS),
            "classes": str(made / "classes.txt"),
            "labels": str(made / "image_labels.csv"),
        },
        {"policy": name, **asdict(chosen), "target": str(target), **_number_of_crowds(target)},
    )


def _number_of_crowds(target: Path) -> dict[str, int]:
    """The number of "objects", and of those that are "crowds", in all splits."""
    counts = json.loads((target / MANIFEST).read_text())["counts"].values()
    return {key: sum(each.get(key, 0) for each in counts) for key in ("objects", "crowds")}


def _read_splits(
    root: Path, splits: Sequence[str], policy: Policy
) -> tuple[list[str], dict[str, Listing], dict[str, dict[str, int]]]:
    """Category names, listings and counts; checks all files before the first mask is drawn."""
    names: list[str] = []
    listings, counts = {}, {}
    for split in splits:
        path = _annotations(root, split)
        instances = read_instances(path)
        if names and names != instances.names:
            raise DataError(f"{path} has other categories than the split before it")
        names = instances.names
        check_counts(split, instances)
        crowds = count_crowds(path, instances, policy)
        listings[split] = listing = listed(instances, policy)
        counts[split] = {"images": len(listing), "labelled": sum(map(bool, listing.values())), **crowds}
    return names, listings, counts


def count_crowds(path: Path, instances: Instances, policy: Policy) -> dict[str, int]:
    """The number of "objects", and of those that are "crowds".

    Raises:
        DataError: all are crowds, and the policy leaves crowds out.
    """
    marks = [each.crowd for objects in instances.objects for each in objects]
    if marks and all(marks) and policy.crowd != "include":
        raise DataError(
            f"all {len(marks)} objects in {path} are crowds (iscrowd: 1), which crowd={policy.crowd} leaves "
            "out of the masks. Datumaro marks every mask so. If they are objects: prepare.crowd=include"
        )
    return {"objects": len(marks), "crowds": sum(marks)}


def check_counts(split: str, instances: Instances) -> None:
    """Checks a file with the official number of images for the official number of annotated images.

    Raises:
        DataError: annotations are missing.
    """
    images, annotated = len(instances.images), sum(map(bool, instances.objects))
    expected = OFFICIAL.get(split)
    if expected is not None and images == expected[0] and annotated != expected[1]:
        raise DataError(
            f"{split} has {images} images as COCO's, but {annotated} of them have instances, not "
            f"{expected[1]}: the file is not COCO's, or is damaged; fetch it again"
        )


def listed(instances: Instances, policy: Policy) -> Listing:
    """The listed images of a split, with their labels."""
    listing = {
        record.id: sorted(
            {o.label for o in objects if o.label and (policy.crowd != "exclude" or not o.crowd)}
        )
        for record, objects in zip(instances.images, instances.objects, strict=True)
    }
    if policy.unannotated == "drop":
        listing = {image_id: labels for image_id, labels in listing.items() if labels}
    if not listing:
        raise DataError("no image has an instance; with unannotated=drop nothing is left")
    return listing


def draw_masks(
    annotations: Path, ids: set[str], folder: Path, policy: Policy, workers: int | str, progress: bool | str
) -> None:
    """Draws the missing masks, in processes.

    Raises:
        DataError: lists the images that could not be drawn.
    """
    left = {image_id for image_id in ids if not (folder / f"{image_id}.png").is_file()}
    if not left:
        return
    # Read again, so that the objects of only one file are in memory.
    instances = read_instances(annotations)
    jobs: list[Job] = [
        (record, objects, folder / f"{record.id}.png")
        for record, objects in zip(instances.images, instances.objects, strict=True)
        if record.id in left
    ]
    draw = partial(write_semantic_mask, policy.crowd, policy.overlap)
    drawn = ordered_map(draw, jobs, worker_count(workers) if len(jobs) >= FEW else 1)
    bar = track(drawn, f"Masks of {annotations.stem}", len(jobs), show=progress, unit="mask")
    broken = [problem for problem in bar if problem]
    if broken:
        problems = {"masks that cannot be drawn": broken}
        raise DataError(list_problems(f"{annotations} cannot be used", problems, "Correct it."))


def _annotations(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def _state(root: Path, split: str) -> list[int]:
    """Size and modification time of a split's annotations, which identify them.

    Raises:
        DatasetNotFoundError: the annotations or the images are missing.
    """
    path = _annotations(root, split)
    for needed, good in ((path, path.is_file()), (root / split, (root / split).is_dir())):
        if not good:
            raise DatasetNotFoundError(
                f"{needed} is absent. Expected COCO's layout at data.root={root}: {split}/*.jpg and "
                f"annotations/{path.name}"
            )
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _is_ready(target: Path, stamp: dict[str, Any]) -> bool:
    """Whether the target is complete for this policy and these annotations.

    Raises:
        ConfigError: it has other content.
    """
    path = target / MANIFEST
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file; expected a folder: prepare.target=DIR")
    if not path.is_file():
        if target.is_dir() and any(target.iterdir()):
            raise ConfigError(f"{target} holds something else; choose an empty folder: prepare.target=DIR")
        return False
    try:
        there = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); delete {target} and run again") from error
    if not isinstance(there, dict) or any(there.get(key) != value for key, value in stamp.items()):
        raise ConfigError(
            f"{target} was made from other annotations, or with the policy {there.get('policy')}; expected "
            f"{stamp['policy']}. Choose another folder (prepare.target=DIR), or delete this one"
        )
    # Masks that were deleted are drawn again.
    if "counts" not in there or not (target / MASKS).is_dir():
        return False
    expected = sum(count["images"] for count in there["counts"].values())
    return len(scan_folder(target / MASKS, (".png",))) >= expected


def _write_tables(target: Path, names: Sequence[str], splits: dict[str, Listing]) -> None:
    rows: dict[str, list[str]] = {}
    for split, listing in splits.items():
        rows |= {image_id: [names[label - 1] for label in labels] for image_id, labels in listing.items()}
        atomic_write(target / LISTS / f"{split}.txt", "\n".join(listing).encode())
    atomic_write(target / "classes.txt", "\n".join(names).encode())
    write_label_csv(target / "image_labels.csv", rows)
