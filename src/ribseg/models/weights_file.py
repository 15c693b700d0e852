"""Reads files of weights: of any training program, without executing code from them.

Training programs nest state dictionaries under "model", "state_dict", "model_ema" or other keys. Every
dictionary of tensors in a file is found, not only those under known keys; `ribseg.models.weights` says which
one fits a network.
"""

import argparse
import itertools
import pickle
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ribseg.errors import ConfigError, reason, shortened
from ribseg.models.packages import packaged_file, packaged_state

# Errors of torch.load for truncated files and files that are not checkpoints.
BROKEN = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, ImportError, struct.error, pickle.UnpicklingError,
)  # fmt: skip
DEPTH = 3  # of nested dictionaries
SHOWN = 4  # names in a message


class Place(NamedTuple):
    """A dictionary of tensors in a file, and its path there: "state_dict", "a.b", "" for the top level."""

    where: str
    tensors: dict[str, Tensor]

    def __str__(self) -> str:
        place = f"the weights lie under {self.where!r}" if self.where else "the weights are at its top level"
        return f"{place} (keys: {listed(self.tensors)})"


def resolve_weights(path: str | Path) -> Path:
    """The weight file for a path or a built-in name.

    Args:
        path: of a file; "demo" for the built-in backbone; "efficientnet_lite0" to "efficientnet_lite2" for
            ImageNet weights of the extra `ribseg[weights]`.

    Raises:
        ConfigError: the extra is not installed.
    """
    if path == "demo":
        return Path(__file__).parents[1] / "assets" / "demo_backbone.safetensors"
    return packaged_file(str(path)) or Path(path)


def read_file(path: str | Path) -> Any:
    """The content of a weight file, read without executing code from it.

    Args:
        path: of a .safetensors or torch file, or a name for `resolve_weights`.

    Raises:
        ConfigError: no such file, damaged, or not readable without executing code.
    """
    file = resolve_weights(path)
    if not file.is_file():
        raise ConfigError(f"no file of weights at {file}; check the path")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        # timm's training program saves its arguments with the weights; Namespace is a harmless class.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except BROKEN as error:
        raise ConfigError(_why_unreadable(file, error)) from error
    return packaged_state(str(path), content)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, *BROKEN) as error:
        raise ConfigError(f"{file} is not a readable safetensors file: {reason(error)}") from error


def _why_unreadable(file: Path, error: BaseException) -> str:
    objects: list[str] = []
    try:
        objects = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except BROKEN:  # not a zip file of torch; use the message of the first error
        objects = re.findall(r"GLOBAL ([\w.]+)", str(error))
    if "TorchScript" in str(error):
        return (
            f"{file} is a TorchScript program, not a state dictionary; write one with "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )
    if not objects:
        # torch's own message recommends to execute code from the file.
        why = "" if "weights_only" in str(error) else f" ({reason(error)})"
        return (
            f"{file} is damaged, or not a file of torch.save{why}: it begins with {_beginning(file)}. "
            "Expected .pth, .pt, .ckpt or .safetensors; copy or download it again"
        )
    return (
        f"{file} cannot be read safely (weights_only=True): it holds objects besides tensors "
        f"({listed(objects)}), which cannot be loaded without executing code. Save only the weights: "
        "torch.save(model.state_dict(), path). Or, if you trust the file's author, extract them from the "
        "result of torch.load(path, weights_only=False)"
    )


def _beginning(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return repr(opened.read(16))
    except OSError as error:
        return reason(error)


def listed(names: Sequence[str] | Mapping[str, Any], shown: int = SHOWN) -> str:
    """The first names, and how many more there are.

    >>> listed(["a", "b", "c"], shown=2)
    'a, b and 1 more'
    """
    first = ", ".join(shortened(str(name)) for name in itertools.islice(names, shown))
    return first if len(names) <= shown else f"{first} and {len(names) - shown} more"


def places_of(content: Any, path: str | Path) -> list[Place]:
    """Every dictionary of tensors in the content of a file; averaged weights ("ema") first, as in timm.

    Raises:
        ConfigError: there is none.
    """
    found = list(_places(content, "", DEPTH))
    if not found:
        keys = [str(key) for key in content] if isinstance(content, Mapping) else []
        inside = f" with the keys {listed(keys)}" if keys else ""
        raise ConfigError(
            f"{path} can be read, but has no named tensors: it holds a {type(content).__name__}{inside}; "
            "expected a file of torch.save(model.state_dict(), path)"
        )
    return sorted(found, key=lambda place: "ema" not in re.split(r"[._]", place.where))


def _places(content: Any, where: str, depth: int) -> Iterator[Place]:
    if not isinstance(content, Mapping) or depth == 0:
        return
    tensors = {key: v for key, v in content.items() if isinstance(key, str) and isinstance(v, Tensor)}
    if tensors:
        yield Place(where, tensors)
    for key, value in content.items():
        if isinstance(key, str):
            yield from _places(value, f"{where}.{key}" if where else key, depth - 1)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, without "module."; of several dictionaries the largest.

    Raises:
        ConfigError: no such file, or no dictionary of tensors.
    """
    places = places_of(read_file(path), path)
    state = max(places, key=lambda place: len(place.tensors)).tensors
    return {key.removeprefix("module."): value for key, value in state.items()}
