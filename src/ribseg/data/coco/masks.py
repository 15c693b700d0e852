"""Semantic masks from COCO's instances."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ribseg.data.coco.instances import ImageRecord, Instance
from ribseg.data.coco.policy import Crowd, Overlap
from ribseg.data.io.masks import IGNORE, write_mask

Job = tuple[ImageRecord, list[Instance], Path]


def semantic_mask(
    record: ImageRecord, objects: Sequence[Instance], crowd: Crowd = "include", overlap: Overlap = "last"
) -> np.ndarray:
    """The semantic mask of an image's objects.

    Args:
        record: of the image.
        objects: in the file's order, from `read_instances`.
        crowd: see `ribseg.data.coco.policy.Policy`; with "ignore255" single objects are drawn over crowds.
        overlap: see `ribseg.data.coco.policy.Policy`.

    Returns:
        (H, W) uint8, 0 background, 255 ignore.
    """
    mask = np.zeros((record.height, record.width), np.uint8)
    if crowd == "ignore255":
        for instance in objects:
            if instance.crowd:
                mask[_region(instance, record)] = IGNORE
    drawn = [(_region(item, record), item.label) for item in objects if crowd == "include" or not item.crowd]
    if overlap == "smallest_on_top":
        # A stable sort: of equal areas the last one in the file is on top.
        drawn.sort(key=lambda pair: -int(pair[0].sum()))
    for region, label in drawn:
        mask[region] = label
    return mask


def write_semantic_mask(crowd: Crowd, overlap: Overlap, job: Job) -> str:
    """Draws and writes one mask, in a worker process; returns an error message, or ""."""
    record, objects, target = job
    try:
        write_mask(target, semantic_mask(record, objects, crowd, overlap))
    except ValueError as error:  # pycocotools rejects a segmentation that passed our checks
        return f"{record.id}: {error}"
    return ""


def _region(instance: Instance, record: ImageRecord) -> np.ndarray:
    """(H, W) bool."""
    from pycocotools import mask as codes

    segmentation, height, width = instance.segmentation, record.height, record.width
    if isinstance(segmentation, list):
        code = codes.merge(codes.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        code = codes.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    return codes.decode(code).astype(bool)
