"""Archives for PASCAL VOC's evaluation server: `results/VOC2012/Segmentation/comp6_*_cls/<id>.png`.

The server expects indexed PNGs with VOC's palette in the images' sizes and silently scores anything else as
zero, so a written archive is read again and checked.
"""

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ribseg.data.io.masks import mask_ids, voc_palette
from ribseg.errors import DAMAGED, DataError, list_problems, reason
from ribseg.files import atomic_file


def archive_folder(split: str) -> str:
    """The folder of the masks in the archive.

    >>> archive_folder("test")
    'results/VOC2012/Segmentation/comp6_test_cls'
    """
    return f"results/VOC2012/Segmentation/comp6_{split}_cls"


def write_voc_archive(path: str | Path, folder: str | Path, ids: Sequence[str], split: str) -> None:
    """Packs masks `<id>.png` into an archive; the same masks give the same bytes.

    Args:
        path: of the .tar.gz.
        folder: of the masks, palette PNGs.
        ids: of the images.
        split: "val" or "test".

    Raises:
        RibsegError: the archive cannot be written.
    """
    with (
        atomic_file(path) as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for image_id in ids:
            data = (Path(folder) / f"{image_id}.png").read_bytes()
            entry = tarfile.TarInfo(f"{archive_folder(split)}/{image_id}.png")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def check_voc_archive(
    path: str | Path, sizes: Mapping[str, tuple[int, int]], split: str, num_classes: int
) -> None:
    """Checks every mask in an archive.

    Args:
        path: of the .tar.gz.
        sizes: image id -> (height, width), of all expected images.
        split: "val" or "test".
        num_classes: without background.

    Raises:
        DataError: lists everything that the server would not accept.
    """
    problems: dict[str, list[str]] = {"absent masks": [], "files too many": [], "unusable masks": []}
    names = {f"{archive_folder(split)}/{image_id}.png": image_id for image_id in sizes}
    palette, seen = voc_palette().tobytes(), set[str]()
    with tarfile.open(path, mode="r:gz") as archive:
        for entry in archive:
            file = archive.extractfile(entry)
            if entry.name not in names or entry.name in seen or file is None:
                problems["files too many"].append(entry.name)
                continue
            seen.add(entry.name)
            wrong = _complaint(file.read(), sizes[names[entry.name]], palette, num_classes)
            if wrong:
                problems["unusable masks"].append(f"{entry.name}: {wrong}")
    problems["absent masks"] += [name for name in names if name not in seen]
    found = {kind: what for kind, what in problems.items() if what}
    if found:
        headline = f"{path} is not what VOC's server takes"
        raise DataError(list_problems(headline, found, "Delete it and run again."))


def _complaint(data: bytes, size: tuple[int, int], palette: bytes, num_classes: int) -> str:
    """The problem with a mask; "" if there is none."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.verify()  # checksums
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            stored, interlaced = image.tile[0][3], bool(image.info.get("interlace"))
            values = mask_ids(np.asarray(image)).tolist() if image.mode == "P" else [0]
            colours = bytes(image.getpalette("RGB") or ())
            found = image.height, image.width
    except DAMAGED as error:
        return f"cannot be read: {reason(error)}"
    if stored != "P" or interlaced:
        return f"is not indexed with 8 bit: {stored}{', interlaced' if interlaced else ''}"
    if found != size:
        return f"is of size {found}, its image of {size} (height, width)"
    if not palette.startswith(colours) or len(colours) <= 3 * max(values):
        return "has not VOC's palette"
    if max(values) > num_classes:
        return f"holds the label {max(values)}, there are 0..{num_classes}"
    return ""
