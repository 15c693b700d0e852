"""What a PNG says of itself, by its chunks (PNG specification, W3C 2003), without an image library."""

import struct
import zlib
from collections.abc import Iterator
from itertools import dropwhile, takewhile
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Of the seven passes of an interlaced file: first column, first row, step across, step down.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PORTION = 1 << 20  # bytes that are unpacked at a time


class Chunk(NamedTuple):
    """One chunk.

    Attributes:
        kind: four letters.
        body: its content; shorter than it should be where the file ends early.
        whole: whether its checksum fits.
    """

    kind: bytes
    body: bytes
    whole: bool


def chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of a PNG file, in order."""
    place = len(SIGNATURE)
    while place + 12 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, place), data[place + 4 : place + 8]
        body, check = data[place + 8 : place + 8 + length], data[place + 8 + length : place + 12 + length]
        yield Chunk(kind, body, check == struct.pack(">I", zlib.crc32(kind + body)))
        place += 12 + length


def has_all_rows(data: bytes) -> bool:
    """Whether as many pixels are packed in a PNG file as its header says, and as they were written.

    Decoders leave rows black, without a word, where the packed data end in an orderly way but too early, and
    do not look at the checksum of the last portion once they have all rows.
    """
    header = next((chunk.body for chunk in chunks(data) if chunk.kind == b"IHDR"), b"")
    if len(header) < 13:
        return False
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", header)
    missing = _packed_bytes(width, height, depth * CHANNELS.get(colour, 1), bool(interlace))
    # A decoder stops at the first other chunk.
    packed = [*takewhile(lambda c: c.kind == b"IDAT", dropwhile(lambda c: c.kind != b"IDAT", chunks(data)))]
    if not all(chunk.whole for chunk in packed):
        return False
    stream, rest = zlib.decompressobj(), b"".join(chunk.body for chunk in packed)
    try:
        while missing > 0 and (portion := stream.decompress(rest, PORTION)):
            missing -= len(portion)
            rest = stream.unconsumed_tail
    except zlib.error:
        return False
    return missing <= 0


def _packed_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Of all rows, each with the byte that names its filter; `bits` a pixel."""
    total = 0
    for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
