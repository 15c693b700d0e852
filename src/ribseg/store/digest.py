"""What enters a stage's digest: settings, content of files that they name, source of the user's code."""

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ribseg.store.sources import foreign_targets, source_digest

# Name and value of a setting -> the file or the choice that it stands for.
Resolve = Callable[[str, str], str]


def as_given(name: str, value: str) -> str:
    """The value of a setting: nothing stands for anything else."""
    return value


def counting(settings: dict[str, Any], resolve: Resolve = as_given) -> dict[str, Any]:
    """The settings as a digest covers them.

    Args:
        settings: nested plain values.
        resolve: see `Resolve`.

    Returns:
        The settings with file names replaced by digests of the files' content; under "sources" the digests of
        the modules of all `_target_`s of the user's code.
    """
    sources = {target: source_digest(target) for target in sorted(set(foreign_targets(settings)))}
    return contents(settings, resolve) | ({"sources": sources} if sources else {})


def contents(node: Any, resolve: Resolve = as_given, name: str = "") -> Any:
    """Nested settings with file names replaced by digests of the files' content."""
    if isinstance(node, dict):
        return {key: contents(value, resolve, str(key)) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [contents(value, resolve, name) for value in node]
    if not isinstance(node, str):
        return node
    value = resolve(name, node)
    path = Path(value)
    looks_like_file = path.suffix or len(path.parts) > 1
    return f"file:{file_digest(path)}" if looks_like_file and path.is_file() else value


def file_digest(path: Path) -> str:
    """sha256 of a file's content, kept while its size and time of change stay."""
    state = path.stat()
    return _file_digest(os.fspath(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _file_digest(path: str, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
