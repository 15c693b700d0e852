"""The archive that PASCAL VOC's evaluation server takes: `results/VOC2012/Segmentation/comp6_*_cls/<id>.png`.

Indexed PNGs with VOC's palette, of the images' sizes; anything else scores zero there without a word. So the
archive is opened again, and every mask in it is read.
"""

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ribseg.data.io.files import atomic_write
from ribseg.data.io.masks import voc_palette
from ribseg.data.io.png import SIGNATURE, has_all_rows
from ribseg.errors import DataError, list_problems, reason

INDEXED = 3  # colour type of palette PNGs
HEADER_END = (
    29  # of signature and first chunk, whose last bytes are depth, colour type, two methods, interlace
)


class IndexedPng(NamedTuple):
    """What a palette PNG says of itself, and what it holds.

    Attributes:
        size: (height, width).
        palette: RGB triples, one after the other.
        values: the indices that occur.
    """

    size: tuple[int, int]
    palette: bytes
    values: frozenset[int]


def archive_folder(split: str) -> str:
    """Where the masks lie in the archive.

    >>> archive_folder("test")
    'results/VOC2012/Segmentation/comp6_test_cls'
    """
    return f"results/VOC2012/Segmentation/comp6_{split}_cls"


def write_voc_archive(path: str | Path, folder: str | Path, ids: Sequence[str], split: str) -> None:
    """Packs masks `<id>.png`; the same masks give the same bytes.

    Args:
        path: of the .tar.gz.
        folder: of the masks, palette PNGs.
        ids: of the images.
        split: "val" or "test".

    Raises:
        RibsegError: the archive cannot be written.
    """
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for image_id in ids:
            data = (Path(folder) / f"{image_id}.png").read_bytes()
            entry = tarfile.TarInfo(f"{archive_folder(split)}/{image_id}.png")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    atomic_write(path, buffer.getvalue())


def check_voc_archive(
    path: str | Path, sizes: Mapping[str, tuple[int, int]], split: str, num_classes: int
) -> None:
    """Opens an archive and looks at every mask in it.

    Args:
        path: of the .tar.gz.
        sizes: image id -> (height, width), of every image that must be there.
        split: "val" or "test".
        num_classes: without background.

    Raises:
        DataError: lists what the server would not take.
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
        raise DataError(
            list_problems(f"{path} is not what VOC's server takes", found, "Delete it and export again.")
        )


def _complaint(data: bytes, size: tuple[int, int], palette: bytes, num_classes: int) -> str:
    """What is wrong with a mask; nothing for a good one."""
    try:
        png = read_indexed_png(data)
    except DataError as error:
        return str(error)
    if png.size != size:
        return f"is of size {png.size}, its image of {size} (height, width)"
    if not palette.startswith(png.palette) or len(png.palette) <= 3 * max(png.values):
        return "has not VOC's palette"
    if max(png.values) > num_classes:
        return f"holds the label {max(png.values)}, there are 0..{num_classes}"
    return ""


def read_indexed_png(data: bytes) -> IndexedPng:
    """Reads an indexed PNG of 8 bit without interlacing.

    Raises:
        DataError: it is none, or broken.
    """
    if not data.startswith(SIGNATURE) or len(data) < HEADER_END:
        raise DataError("is no PNG")
    depth, colour, _, _, interlace = data[HEADER_END - 5 : HEADER_END]
    if (depth, colour, interlace) != (8, INDEXED, 0):
        raise DataError(
            f"is not indexed with 8 bit: depth {depth}, colour type {colour}, interlace {interlace}"
        )
    if not has_all_rows(data):
        raise DataError("is truncated or damaged")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            values = frozenset(np.unique(np.asarray(image)).tolist())
            return IndexedPng((image.height, image.width), bytes(image.getpalette() or ()), values)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"cannot be read: {reason(error)}") from error
