"""Reads and writes files of weights, without executing code from them.

Training programs nest state dictionaries under "model", "state_dict", "model_ema" or other keys. Every
dictionary of tensors in a file is found, not only those under known keys; `ribseg.models.weights` says which
one fits a network.

Our own files are safetensors with a JSON header that names one of our architectures with plain settings, to
rebuild and use the network. Other programs can read them as any safetensors file.
"""

import argparse
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ribseg.data.io.images import Channels
from ribseg.errors import DAMAGED, ConfigError, reason, shortened
from ribseg.files import atomic_write
from ribseg.models.packages import packaged_file, packaged_state

DEPTH = 3  # of nested dictionaries
SHOWN = 4  # names in a message
SUFFIX = ".safetensors"
HEADER = "ribseg"  # key of our entry in the file's metadata
LAYOUT = 1  # version of the header's format


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

    Returns:
        What `torch.save` wrote; of a safetensors file its tensors by name; of a file of `write_described` the
        description, with the tensors under "state_dict".

    Raises:
        ConfigError: no such file, damaged, not readable without executing code, or written by a later version
            of ribseg.
    """
    file = resolve_weights(path)
    if not file.is_file():
        raise ConfigError(f"no file of weights at {file}; check the path")
    if file.suffix == SUFFIX:
        return _read_safetensors(file)
    try:
        # timm's training program saves its arguments with the weights; Namespace is a harmless class.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise ConfigError(_why_unreadable(file, error)) from error
    return packaged_state(str(path), content)


def _read_safetensors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(file, "pt") as opened:
            description = json.loads((opened.metadata() or {}).get(HEADER, "null"))
        tensors = load_file(file)
    except (SafetensorError, *DAMAGED) as error:
        raise ConfigError(f"{file} is not a readable safetensors file: {reason(error)}") from error
    if description is None:
        return tensors
    if not isinstance(description, dict) or description.get("layout") != LAYOUT:
        raise ConfigError(
            f"{file} has a description of unknown layout (expected {LAYOUT}); was it written by a later "
            "version of ribseg?"
        )
    return {**description, "state_dict": tensors}


def described(
    kind: str, network: nn.Module, classes: Sequence[str] | None, mean: Channels, std: Channels
) -> dict[str, Any]:
    """The description of a classifier or segmenter, which is None where the network does not say it."""
    about = {name: getattr(network, name, None) for name in ("architecture", "settings")}
    return {"kind": kind, **about, "classes": classes, "mean": mean, "std": std}


def write_described(path: str | Path, description: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes weights with a description, atomically; equal input gives equal bytes.

    Args:
        path: must end in .safetensors.
        description: JSON values; "kind" names what is described.
        state: state dictionary of the network.

    Raises:
        ConfigError: another file extension, or a description that JSON cannot hold.
        RibsegError: the file cannot be written.
    """
    from safetensors.torch import save

    if Path(path).suffix != SUFFIX:
        raise ConfigError(f"expected a file name that ends in {SUFFIX}, got {path}")
    try:
        header = json.dumps({"layout": LAYOUT, **description}, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} would not be readable without executing code: settings and inference may hold only "
            f"numbers, strings, lists and dictionaries, got {dict(description)} ({reason(error)})"
        ) from error
    # Copies: safetensors rejects tensors that share memory or are not contiguous.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    # A single entry: safetensors writes several in random order.
    atomic_write(path, save(tensors, metadata={HEADER: header}))


def _why_unreadable(file: Path, error: BaseException) -> str:
    try:
        objects = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except DAMAGED:  # not a zip file of torch; use the message of the first error
        objects = re.findall(r"GLOBAL ([\w.]+)", str(error))
    if "TorchScript" in str(error):
        return (
            f"{file} is a TorchScript program, not a state dictionary; write one with "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )
    if objects:
        return (
            f"{file} cannot be read safely (weights_only=True): it holds objects besides tensors "
            f"({listed(objects)}), which cannot be loaded without executing code. Save only the weights: "
            "torch.save(model.state_dict(), path). Or, if you trust the file's author, extract them from the "
            "result of torch.load(path, weights_only=False)"
        )
    try:
        with file.open("rb") as opened:
            beginning = repr(opened.read(16))
    except OSError as failure:
        beginning = reason(failure)
    # torch's own message recommends to execute code from the file.
    why = "" if "weights_only" in str(error) else f" ({reason(error)})"
    return (
        f"{file} is damaged, or not a file of torch.save{why}: it begins with {beginning}. "
        "Expected .pth, .pt, .ckpt or .safetensors; copy or download it again"
    )


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
