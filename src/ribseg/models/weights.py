"""Files of weights: state dictionaries as anybody saves them, found by the names that a network wants.

A training program saves its weights by themselves or beside other things, under "model", "state_dict",
"model_ema" or any other name, and with the prefixes of what it wraps networks in: "model.", "module.",
"backbone.encoder.". Neither is looked up in a list: every dictionary of tensors in the file is tried, with
every prefix under which a wanted name occurs. Underscores and dots count as the same letter, since the layers
of a backbone here ("layer1_0") are nested in timm ("layer1.0"). Nothing in a file is executed.
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

# What torch.load raises on files that are no checkpoint, or half of one.
BROKEN = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, ImportError, struct.error, pickle.UnpicklingError,
)  # fmt: skip
COUNTER = "num_batches_tracked"  # of BatchNorm; nothing needs it, and many files lack it
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
DEPTH = 3  # of dictionaries in dictionaries
SHOWN = 4  # names in a message
Names = Callable[[str], str]


class Place(NamedTuple):
    """Tensors in a file: `where` they lie ("state_dict", "a.b", "" for the whole file), under what keys."""

    where: str
    tensors: dict[str, Tensor]

    def __str__(self) -> str:
        place = f"the weights lie under {self.where!r}" if self.where else "it holds the weights themselves"
        return f"{place} (keys: {listed(self.tensors)})"


class Match(NamedTuple):
    """What of the wanted weights a place has under a prefix.

    Attributes:
        place: of the tensors.
        prefix: before the wanted names, with the dot at its end.
        names: wanted name -> key in the place.
        missing: wanted names that are not there, as the file would spell them.
        foreign: keys in the place that belong to parts of the network, but which it does not have.
        left_out: keys in the place that the network does without.
    """

    place: Place
    prefix: str
    names: dict[str, str]
    missing: list[str]
    foreign: list[str]
    left_out: list[str]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Wanted name -> tensor."""
        return {name: self.place.tensors[key] for name, key in self.names.items()}

    @property
    def complete(self) -> bool:
        """Whether the network can take it."""
        return not self.missing and not self.foreign


def resolve_weights(path: str | Path) -> Path:
    """The file that a setting names.

    Args:
        path: of a file; "demo": the built-in backbone; "efficientnet_lite0" to "efficientnet_lite2": ImageNet
            weights of the extra `ribseg[weights]`.

    Raises:
        ConfigError: the extra is not installed.
    """
    if path == "demo":
        return Path(__file__).parents[1] / "assets" / "demo_backbone.safetensors"
    return packaged_file(str(path)) or Path(path)


def read_file(path: str | Path) -> Any:
    """What a file of weights holds, read without executing anything in it.

    Args:
        path: of a .safetensors or torch file; or a name that `resolve_weights` knows.

    Raises:
        ConfigError: no such file, damaged, or not readable without executing code; says which.
    """
    file = resolve_weights(path)
    if not file.is_file():
        raise ConfigError(f"no file of weights at {file}; check the path")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        # Training programs of timm put their arguments beside the weights, as plain a class as there is.
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
    except BROKEN:  # no zip file of torch; then its own message has to do
        objects = re.findall(r"GLOBAL ([\w.]+)", str(error))
    if "TorchScript" in str(error):
        return (
            f"{file} is a program of TorchScript, not a state dictionary; write one with "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )
    if not objects:
        # Torch's own message recommends to execute what is in the file.
        why = "" if "weights_only" in str(error) else f" ({reason(error)})"
        return (
            f"{file} is damaged, or no file of torch.save{why}: it begins with {_beginning(file)}. Expected "
            ".pth, .pt, .ckpt or .safetensors; copy or download it again"
        )
    return (
        f"{file} cannot be read safely (weights_only=True): it holds objects besides tensors "
        f"({listed(objects)}), which only code can make. Save the weights alone where the file was made: "
        "torch.save(model.state_dict(), path). Or, if you trust its maker, take them out of what "
        "torch.load(path, weights_only=False) gives"
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
    """Every dictionary of tensors in what a file holds, averaged weights ("ema") first, as timm prefers them.

    Raises:
        ConfigError: there is none; says what was found.
    """
    found = list(_places(content, "", DEPTH))
    if not found:
        keys = [str(key) for key in content] if isinstance(content, Mapping) else []
        inside = f" with the keys {listed(keys)}" if keys else ""
        raise ConfigError(
            f"{path} can be read, but has no tensors by name: it holds a {type(content).__name__}{inside}; "
            "expected what torch.save(model.state_dict(), path) writes"
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
    """The tensors of a file by name; of several dictionaries in it the largest, without "module.".

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
    """The weights of a network in a file.

    Args:
        wanted: the network's state.
        path: of the file, see `read_file`.
        spellings: other names of the weights, of which the file may have either; its own are always tried.
        what: the network, for messages.
        content: of the file, if it has been read.
        optional: names of weights that the file may have and the network does without.

    Raises:
        ConfigError: the file cannot be read; the network's weights are not in it, or are in several places
            with different values.
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
            "the ones that you want by themselves: torch.save(model.state_dict(), path)"
        )
    return match


def _equal(one: Match, other: Match) -> bool:
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def _matches(
    wanted: Mapping[str, Tensor], place: Place, spelled: Names, optional: Sequence[str]
) -> Iterator[Match]:
    """What a place has of the wanted weights, for every prefix under which one of them occurs."""
    # Names that differ by a dot or an underscore alone are taken as they are.
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
            "prefix. Does the file belong to another network?"
        )
    lacks = f"{len(best.missing)} of {len(wanted)} weights are missing ({listed(best.missing)})"
    more = f"{len(best.foreign)} are unknown to it ({listed(best.foreign)})"
    return (
        f"{path} does not belong to {what}: {best.place}, but "
        f"{' and '.join(text for text, found in ((lacks, best.missing), (more, best.foreign)) if found)}"
    )


def load_fitting(module: nn.Module, match: Match, path: str | Path) -> None:
    """Loads weights that were found; counters of BatchNorm that the file lacks stay as they are.

    Raises:
        ConfigError: a weight has another shape, is no floating-point number, or is not finite; by name.
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
    """The shape without ones at its end: a linear layer is a 1x1 convolution."""
    shape = list(tensor.shape)
    while shape and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def check_finite(
    state: Mapping[str, Tensor], path: str | Path, names: Mapping[str, str] | None = None
) -> None:
    """Raises a ConfigError that names the file and every weight in it that is not finite."""
    broken = [
        (names or {}).get(name, name)
        for name, tensor in state.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise ConfigError(
            f"{path} holds weights that are not finite (NaN or infinite): {listed(broken)}. The training "
            "that wrote it has diverged, or the file is damaged; take an earlier checkpoint"
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
    """Loads renamed weights of a released checkpoint; counters of BatchNorm, which nothing needs, may lack.

    Args:
        module: is changed in place.
        state: its weights.
        path: of the file, for messages.
        what: it should be a checkpoint of, for messages.

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
