"""Reads weight files of any training program and matches their keys with the names of a network.

Training programs nest state dictionaries under "model", "state_dict", "model_ema" or other keys, and prefix
names with "model.", "module.", "backbone.encoder." and the like. Instead of a list of known layouts, every
dictionary of tensors in the file is tried, with every prefix of an expected name. Underscores and dots are
equivalent, as backbone layers here ("layer1_0") are nested in timm ("layer1.0"). No code in a file is run.
"""

import argparse
import itertools
import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ribseg.errors import ConfigError, reason, shortened
from ribseg.models.packages import packaged_file, packaged_state

# Errors of torch.load for truncated files and files that are not checkpoints.
BROKEN = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, ImportError, struct.error, pickle.UnpicklingError,
)  # fmt: skip
COUNTER = "num_batches_tracked"  # of BatchNorm; unused, and missing in many files
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
DEPTH = 3  # of nested dictionaries
SHOWN = 4  # names in a message
Names = Callable[[str], str]


class Place(NamedTuple):
    """A dictionary of tensors in a file, and its path there: "state_dict", "a.b", "" for the top level."""

    where: str
    tensors: dict[str, Tensor]

    def __str__(self) -> str:
        place = f"the weights lie under {self.where!r}" if self.where else "the weights are at its top level"
        return f"{place} (keys: {listed(self.tensors)})"


class Match(NamedTuple):
    """The weights of a network that a place has under a prefix.

    Attributes:
        place: of the tensors.
        prefix: of the network's names, with the dot at its end.
        names: name in the network -> key in the place.
        missing: names without a key, in the file's spelling.
        foreign: keys under the network's modules that the network does not have.
        left_out: keys of optional weights, which are ignored.
    """

    place: Place
    prefix: str
    names: dict[str, str]
    missing: list[str]
    foreign: list[str]
    left_out: list[str]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Name in the network -> tensor."""
        return {name: self.place.tensors[key] for name, key in self.names.items()}

    @property
    def complete(self) -> bool:
        """Whether the keys match the network's names."""
        return not self.missing and not self.foreign


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


def fitting(
    wanted: Mapping[str, Tensor],
    path: str | Path,
    spellings: Sequence[Names],
    what: str,
    content: Any = None,
    optional: Sequence[str] = (),
) -> Match:
    """Finds the weights of a network in a file.

    Args:
        wanted: the network's state dictionary.
        path: of the file, see `read_file`.
        spellings: functions from the network's names to alternative names that the file may use.
        what: the network, for messages.
        content: of the file, if already read.
        optional: names of weights that the file may have and the network ignores.

    Raises:
        ConfigError: the file cannot be read; or the network's weights are not in it, or are there several
            times with different values.
    """
    places = places_of(read_file(path) if content is None else content, path)
    tried: tuple[Names, ...] = (str, *spellings)
    matches = [
        match for place in places for spelled in tried for match in _matches(wanted, place, spelled, optional)
    ]
    complete = [match for match in matches if match.complete]
    if not complete:
        raise ConfigError(_why_unfit(matches, places, wanted, path, spellings, what))
    match = complete[0]
    others = [m for m in complete[1:] if not _equal(m, match)]
    if others and "ema" not in re.split(r"[._]", match.place.where):
        spots = sorted({f"{m.place.where}: {m.prefix}*" for m in (match, *others)})
        raise ConfigError(
            f"{path} holds weights of {what} in several places, with different values: {listed(spots)}; save "
            "only the ones that you want: torch.save(model.state_dict(), path)"
        )
    return match


def _equal(one: Match, other: Match) -> bool:
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def _matches(
    wanted: Mapping[str, Tensor], place: Place, spelled: Names, optional: Sequence[str]
) -> Iterator[Match]:
    """Matches of the wanted weights in a place, one for every prefix under which a wanted name occurs."""
    # If names differ only by dot or underscore, these are not treated as equivalent.
    same = len({_plain(key) for key in place.tensors}) == len(place.tensors)
    simple = _plain if same else str
    plain = {simple(key): key for key in place.tensors}
    names = {key: simple(spelled(key)) for key in wanted}
    unneeded = [simple(spelled(key)) for key in optional]
    needed = [name for key, name in names.items() if not key.endswith(COUNTER)]
    anchors = {needed[0], needed[len(needed) // 2], needed[-1]} if needed else set()
    prefixes = {key.removesuffix(a) for key in plain for a in anchors if f".{key}".endswith(f".{a}")}
    for prefix in sorted(prefixes, key=len):
        found = {key: plain[prefix + name] for key, name in names.items() if prefix + name in plain}
        missing = [spelled(k) for k in wanted if k not in found and not k.endswith(COUNTER)]
        parts = {f"{prefix}{simple(spelled(key).split('.')[0])}." for key in wanted}
        rest = set(plain) - {prefix + name for name in (*names.values(), *unneeded)}
        foreign = [plain[k] for k in rest if k.startswith(tuple(parts)) and not plain[k].endswith(COUNTER)]
        left_out = [plain[prefix + name] for name in unneeded if prefix + name in plain]
        yield Match(place, prefix, found, missing, sorted(foreign), left_out)


def _plain(key: str) -> str:
    return WRAPPERS.sub("", key).replace("_", ".")


def _why_unfit(
    matches: Sequence[Match],
    places: Sequence[Place],
    wanted: Mapping[str, Tensor],
    path: str | Path,
    spellings: Sequence[Names],
    what: str,
) -> str:
    best = max(matches, key=lambda match: len(match.names) - len(match.foreign), default=None)
    if best is None:
        largest = max(places, key=lambda place: len(place.tensors))
        tried: tuple[Names, ...] = (*spellings, str)
        names = [spelled(key) for spelled in tried for key in itertools.islice(wanted, 2)]
        return (
            f"{path} has no weights of {what}: {largest}; expected keys such as {listed(names)}, with any "
            "prefix. Is the file of another network?"
        )
    lacks = f"{len(best.missing)} of {len(wanted)} weights are missing ({listed(best.missing)})"
    more = f"{len(best.foreign)} are unknown to it ({listed(best.foreign)})"
    return (
        f"{path} does not belong to {what}: {best.place}, but "
        f"{' and '.join(text for text, found in ((lacks, best.missing), (more, best.foreign)) if found)}"
    )


def load_fitting(module: nn.Module, match: Match, path: str | Path) -> None:
    """Loads matched weights into a module; BatchNorm counters missing in the file keep their values.

    Raises:
        ConfigError: a weight has another shape or kind of dtype, or is not finite.
    """
    state = module.state_dict()
    for name, tensor in match.tensors.items():
        key, own = match.names[name], state[name]
        if _squeezed(tensor) != _squeezed(own):
            raise ConfigError(
                f"{path} does not fit: expected {key!r} of shape {tuple(own.shape)}, found "
                f"{tuple(tensor.shape)}"
            )
        if own.is_floating_point() != tensor.is_floating_point():
            raise ConfigError(f"{path} does not fit: expected {key!r} as {own.dtype}, found {tensor.dtype}")
        state[name] = tensor.reshape(own.shape)
    check_finite(match.tensors, path, match.names)
    module.load_state_dict(state)


def _squeezed(tensor: Tensor) -> tuple[int, ...]:
    """The shape without trailing ones: a linear layer is equivalent to a 1x1 convolution."""
    shape = list(tensor.shape)
    while shape and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def check_finite(
    state: Mapping[str, Tensor], path: str | Path, names: Mapping[str, str] | None = None
) -> None:
    """Raises a ConfigError that lists weights that are not finite, if there are any."""
    broken = [
        (names or {}).get(name, name)
        for name, tensor in state.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise ConfigError(
            f"{path} holds weights that are not finite (NaN or infinite): {listed(broken)}. The training "
            "has diverged, or the file is damaged; use an earlier checkpoint"
        )


def renamed(state: Mapping[str, Tensor], rename: Names, path: str | Path) -> dict[str, Tensor]:
    """The weights of a released checkpoint under other names, each once.

    Args:
        state: as read from the file; it may hold a weight under several names.
        rename: name in the file -> new name, the same for all copies of a weight.
        path: of the file, for messages.

    Raises:
        ConfigError: two copies of a weight differ.
    """
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        name = rename(key)
        if name in weights and not torch.equal(weights[name], value):
            raise ConfigError(
                f"{path} holds {name!r} twice with different values (again as {key!r}); the released program "
                "writes equal copies. Save the checkpoint again from one model."
            )
        weights[name] = value
    return weights


def load_released(module: nn.Module, state: Mapping[str, Tensor], path: str | Path, what: str) -> None:
    """Loads the renamed weights of a released checkpoint; BatchNorm counters may be missing.

    Args:
        module: changed in place.
        state: weights under the module's names.
        path: of the file, for messages.
        what: the expected network, for messages.

    Raises:
        ConfigError: weights are missing, unknown, of other shapes, or not finite.
    """
    check_finite(state, path)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"{path} is not a checkpoint of {what}: {reason(error)}") from error
    missing = [key for key in missing if not key.endswith(COUNTER)]
    if missing or unexpected:
        raise ConfigError(
            f"{path} is not a checkpoint of {what}: {len(missing)} weights are missing {missing[:3]}, "
            f"{len(unexpected)} are unknown {unexpected[:3]}"
        )
