"""A long list of image ids in a few arrays, for the processes that load images.

Every Python string counts its references in its own memory. A worker that was forked with a list of strings
writes into each string that it reads, and the system copies the page around it: sooner or later each worker
has a list of its own. The elements of an array have no such counter, so one copy serves all workers.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex, overload
from zlib import crc32

import numpy as np

CHUNK = 4096  # strings of an iteration whose places are Python integers at the same time


class Ids(Sequence[str]):
    """An immutable sequence of strings that reads as a list: `len`, `[]`, `in`, `==`, `index`, iteration.

    A slice is a list. A string is looked up by its checksum among the sorted checksums, so `in`, `find` and
    `index` take the time of a binary search, and equal strings may occur: the first of them is found.

    A string of n bytes takes n + 16 bytes: text, end (8), checksum (4) and row (4). COCO's 120,000 ids of 27
    characters are 5 MB for all workers together. As a list with a dictionary of rows they are 14 MB in each
    (`tests/test_data_ids.py` measures both in a forked process).

    Args:
        strings: in their order.

    >>> ids = Ids(["b", "a", "c"])
    >>> ids[0], ids[1:], "c" in ids, ids.find("c"), ids.find("d"), ids == ["b", "a", "c"]
    ('b', ['a', 'c'], True, 2, -1, True)
    """

    __slots__ = ("_checksums", "_ends", "_rows", "_text")
    __hash__ = None  # type: ignore[assignment]  # as a list: equal to lists, which have none

    def __init__(self, strings: Iterable[str] = ()) -> None:
        encoded = [_encode(string) for string in strings]
        checksums = np.fromiter(map(crc32, encoded), np.uint32, len(encoded))
        # Stable: of equal strings the first comes first.
        rows = np.argsort(checksums, kind="stable")
        self._text = b"".join(encoded)
        self._ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        self._checksums, self._rows = checksums[rows], rows.astype(np.int32)

    @classmethod
    def of(cls, strings: Iterable[str]) -> "Ids":
        """The same object if it is one already, else a new one: a long list is kept once."""
        return strings if isinstance(strings, Ids) else cls(strings)

    @property
    def nbytes(self) -> int:
        """Bytes of text and arrays."""
        return len(self._text) + self._ends.nbytes + self._checksums.nbytes + self._rows.nbytes

    def find(self, string: object) -> int:
        """Place of a string, of equal ones the first; -1 if it is not there."""
        if not isinstance(string, str):
            return -1
        wanted, checksums = _encode(string), self._checksums.data
        checksum = crc32(wanted)
        place = bisect_left(checksums, checksum)
        while place < len(checksums) and checksums[place] == checksum:
            row = int(self._rows[place])
            if self._encoded(row) == wanted:
                return row
            place += 1  # another string of the same checksum
        return -1

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """As of a list; raises a ValueError if it is not there."""
        if start != 0 or stop is not None:
            return super().index(value, start, len(self) if stop is None else stop)
        row = self.find(value)
        if row < 0:
            raise ValueError(f"{value!r} is not among the {len(self)} ids")
        return row

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [_decode(self._encoded(row)) for row in range(*index.indices(len(self)))]
        row = index.__index__()
        if not -len(self) <= row < len(self):
            raise IndexError(f"index {row} is out of range: there are {len(self)} ids")
        return _decode(self._encoded(row % len(self)))

    def __iter__(self) -> Iterator[str]:
        begin = 0
        for start in range(0, len(self), CHUNK):
            for end in self._ends[start : start + CHUNK].tolist():
                yield _decode(self._text[begin:end])
                begin = end

    def __contains__(self, value: object) -> bool:
        return self.find(value) >= 0

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ids):
            return self._text == other._text and np.array_equal(self._ends, other._ends)
        if isinstance(other, list | tuple):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    def __add__(self, other: Sequence[str]) -> list[str]:
        return [*self, *other]

    def __repr__(self) -> str:
        return f"Ids({self[:3]!r}{f' and {len(self) - 3} more' if len(self) > 3 else ''})"

    def _encoded(self, row: int) -> bytes:
        return self._text[int(self._ends[row - 1]) if row else 0 : int(self._ends[row])]


# File names that are not UTF-8 reach Python with lone surrogates, which this lets pass both ways.
def _encode(string: str) -> bytes:
    return string.encode("utf-8", "surrogatepass")


def _decode(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogatepass")
