"""Digests of the contents of many files, which are read again only if they may have changed."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ribseg.errors import DatasetNotFoundError
from ribseg.files import write_json
from ribseg.workers import io_threads, ordered_map

BLOCK = 1 << 20  # bytes
# A file that was changed so shortly before it was read may change again within the clock of its file system.
SETTLED = 2 * 10**9  # ns
State = list[int | str]  # size, times of modification and change in ns, inode, digest


class Contents:
    """Digests of files' contents, remembered by path, size, times of change (ns) and inode.

    An unchanged file then costs a `stat`. Runs at the same time may remember in one place: what one of them
    does not see is read once more.

    Args:
        folder: for the memory, a JSON file for each folder of files; None remembers in this object alone.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._known: dict[str, dict[str, State]] = {}

    def __reduce__(self) -> tuple[type, tuple[Path | None]]:
        """For other processes, which read the memory themselves."""
        return type(self), (self.folder,)

    def digests(self, place: str | Path, names: Sequence[str]) -> list[str]:
        """The digests of the contents of files in a folder, in their order; "absent" for those not there.

        Args:
            place: the folder.
            names: of the files.
        """
        place = os.path.abspath(place)  # noqa: PTH100 - one call for all files
        memory, known = self._memory(place), self._remembered(place)
        states = [_state(f"{place}/{name}") for name in names]
        changed = [
            name
            for name, state in zip(names, states, strict=True)
            if state and known.get(name, [])[:4] != state
        ]
        now = time.time_ns()
        read = [f"{place}/{name}" for name in changed]
        found = dict(zip(changed, ordered_map(_digest, read, io_threads(), threads=True), strict=True))
        result, settled = [], dict[str, State]()
        for name, state in zip(names, states, strict=True):
            digest = "absent" if not state else found.get(name) or str(known[name][4])
            result.append(digest)
            if state and max(map(int, state[1:3])) < now - SETTLED:
                settled[name] = [*state, digest]
        if any(known.get(name) != state for name, state in settled.items()):
            self._known[place] = known | settled
            if memory is not None:
                write_json(memory, self._known[place], indent=None)
        return result

    def of_folder(self, folder: str | Path) -> str:
        """sha256 over the names and contents of all files in a folder and below, not over its own path.

        Raises:
            DatasetNotFoundError: the folder does not exist or is empty.
        """
        root, digest, number = Path(folder), hashlib.sha256(), 0
        for place, folders, files in os.walk(root):
            folders.sort()
            files.sort()
            for name, content in zip(files, self.digests(place, files), strict=True):
                digest.update(f"{os.path.relpath(place, root)}/{name}:{content}\n".encode())
                number += 1
        if number == 0:
            raise DatasetNotFoundError(f"no files in {root}; check the path")
        return digest.hexdigest()

    def _remembered(self, place: str) -> dict[str, State]:
        """Name -> state of the files of a folder that are known."""
        memory = self._memory(place)
        if place not in self._known:
            there = memory is not None and memory.is_file()
            self._known[place] = json.loads(memory.read_text()) if memory is not None and there else {}
        return self._known[place]

    def _memory(self, place: str) -> Path | None:
        """The file that remembers those of a folder."""
        if self.folder is None:
            return None
        return self.folder / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"


def _state(path: str) -> State:
    """Size, times and inode; empty for a file that is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return []
    # Tools that keep the time of modification cannot keep that of the last change.
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _digest(path: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError:  # the check of the data says so
        return "unreadable"
    return digest.hexdigest()
