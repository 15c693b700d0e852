"""The archive that PASCAL VOC's evaluation server takes: `results/VOC2012/Segmentation/comp6_*_cls/<id>.png`.

Indexed PNGs with VOC's palette, of the images' sizes; anything else scores zero there without a word. So what
was written is opened again, by other means than it was written with.
"""

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ribseg.data.io.files import atomic_write
from ribseg.data.io.masks import voc_palette
from ribseg.data.io.png import SIGNATURE, chunks
from ribseg.errors import DataError, list_problems

INDEXED = 3  # colour type of palette PNGs


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
        raise DataError(list_problems(f"{path} is not what VOC's server takes", found, "Make it anew."))


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
    """Reads an indexed PNG of 8 bit without interlacing, by its chunks (PNG specification, W3C 2003).

    Raises:
        DataError: it is none, or broken.
    """
    if not data.startswith(SIGNATURE):
        raise DataError("is no PNG")
    parts: dict[bytes, bytes] = {}
    for kind, body, whole in chunks(data):
        if not whole:
            raise DataError(f"has a broken chunk {kind!r}")
        parts[kind] = parts.get(kind, b"") + body
    if not {b"IHDR", b"IDAT", b"IEND"} <= set(parts) or len(parts[b"IHDR"]) != 13:
        raise DataError("is an incomplete PNG")
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    if (depth, colour, interlace) != (8, INDEXED, 0) or b"PLTE" not in parts:
        raise DataError(
            f"is not indexed with 8 bit: depth {depth}, colour type {colour}, interlace {interlace}"
        )
    try:
        values = _values(zlib.decompress(parts[b"IDAT"]), width, height)
    except zlib.error as error:
        raise DataError(f"holds pixels that cannot be unpacked: {error}") from error
    return IndexedPng((height, width), parts[b"PLTE"], values)


def _values(raw: bytes, width: int, height: int) -> frozenset[int]:
    """The indices that occur; undoes the filters of the rows, for one byte a pixel."""
    if len(raw) != height * (width + 1):
        raise DataError("holds another number of pixels than its header says")
    above, found = bytearray(width), set[int]()
    for start in range(0, len(raw), width + 1):
        row = bytearray(raw[start + 1 : start + 1 + width])
        _unfilter(raw[start], row, above)
        found.update(row)
        above = row
    return frozenset(found)


def _unfilter(kind: int, row: bytearray, above: bytearray) -> None:
    if kind == 0:
        return
    for x in range(len(row)):
        left, corner = (row[x - 1], above[x - 1]) if x else (0, 0)
        row[x] = (row[x] + _predicted(kind, left, above[x], corner)) % 256


def _predicted(kind: int, left: int, up: int, corner: int) -> int:
    if kind == 4:  # Paeth: whichever neighbour is nearest to left + up - corner
        guess = left + up - corner
        return min((left, up, corner), key=lambda value: abs(guess - value))
    if kind not in (1, 2, 3):
        raise DataError(f"has a row filter {kind} that there is not")
    return (left, up, (left + up) // 2)[kind - 1]
