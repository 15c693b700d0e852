"""Listing folders, reading text files, and writing files atomically."""

import json
import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ribseg.errors import DataError, DatasetNotFoundError, RibsegError, list_problems

LONGEST_ID = 200  # bytes; file systems allow 255, including extension and temporary names
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


@contextmanager
def atomic_file(
    path: str | Path, advice: str = "Choose a writable folder with free space."
) -> Iterator[BinaryIO]:
    """A file to write to, under a temporary name in the same folder, renamed at the end; creates the folder.

    A reader, or a run resumed after a kill, sees the complete file or none.

    Raises:
        RibsegError: if the folder cannot be written to; ends with the advice.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RibsegError(f"cannot write {path}: {error.strerror or error}. {advice}") from error


def atomic_write(path: str | Path, data: bytes) -> None:
    """Writes a file as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Writes a value as JSON, as `atomic_write` does."""
    atomic_write(path, json.dumps(value, indent=indent).encode())


def is_taken(path: Path) -> bool:
    """Whether something is at a path already, other than an empty folder."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def read_stamp(path: Path) -> Any:
    """What a JSON file says of the making of its folder; None if it is absent or cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def is_plain_id(text: str) -> bool:
    """Whether a text can be an image id: a file name without extension and folder, without spaces.

    >>> is_plain_id("2007_000032"), is_plain_id("../a"), is_plain_id("two words"), is_plain_id("")
    (True, False, False, False)
    """
    plain = text.isprintable() and not any(sign in text for sign in "/\\:")
    return plain and text not in (".", "..") and text.split() == [text] and len(text.encode()) <= LONGEST_ID


def scan_folder(folder: Path, endings: tuple[str, ...]) -> dict[str, str]:
    """File stem -> file name of the files in a folder, for the given extensions in any case.

    Raises:
        DatasetNotFoundError: if the folder cannot be listed.
        DataError: if files differ only in their extension, so that their id is ambiguous; lists all.
    """
    found: dict[str, str] = {}
    clashes: dict[str, list[str]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, ending = os.path.splitext(entry.name)  # noqa: PTH122
                # is_file also excludes pipes, which would block a reader.
                if ending.lower() in endings and entry.is_file():
                    if stem in found:
                        clashes.setdefault(stem, [found[stem]]).append(entry.name)
                    # Interned, so that each id is one string in memory, also in forked workers.
                    found[sys.intern(stem)] = entry.name
    except OSError as error:
        raise DatasetNotFoundError(f"cannot list the folder {folder}: {error.strerror or error}.") from error
    if clashes:
        pairs = [" and ".join(sorted(names)) for _, names in sorted(clashes.items())]
        advice = "An id is a file name without ending: keep one file of each, or rename one."
        if ".png" in endings and len(endings) > 1:
            advice += " Masks belong into a folder of their own (data.masks_dir)."
        problems = {"files of one id": pairs}
        raise DataError(list_problems(f"the folder {folder} cannot be used", problems, advice))
    return found


def missing_ids(folder: Path, ids: Iterable[str], ending: str) -> list[str]:
    """The ids without a file `<id><ending>` in a folder, which need not exist."""
    found = scan_folder(folder, (ending,)) if folder.is_dir() else {}
    return [image_id for image_id in ids if image_id not in found]


def read_lines(path: Path) -> list[str]:
    """The non-empty lines, stripped, of a UTF-8 text file (with or without BOM, any line ending).

    Raises:
        DataError: if the file cannot be read, is not UTF-8, or has NUL characters, as UTF-16 without a BOM
            would.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error.reason} at byte {error.start}. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    if "\0" in text:
        raise DataError(f"{path} holds NUL characters: it is no text, or not UTF-8. Save it as UTF-8.")
    return [line.strip() for line in text.splitlines() if line.strip()]
