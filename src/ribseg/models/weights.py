"""Matches the keys of a file of weights with the names of a network, and loads them.

Training programs prefix names with "model.", "module.", "backbone.encoder." and the like. Instead of a list
of known layouts, every dictionary of tensors in the file is tried, with every prefix of an expected name.
Underscores and dots are equivalent, as backbone layers here ("layer1_0") are nested in timm ("layer1.0").
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ribseg.errors import ConfigError
from ribseg.models.weights_file import Place, listed, places_of, read_file

COUNTER = "num_batches_tracked"  # of BatchNorm; unused, and missing in many files
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
Names = Callable[[str], str]


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


def fitting(
    network: nn.Module,
    path: str | Path,
    what: str,
    content: Any = None,
    spellings: Sequence[Names] = (),
    optional: Sequence[str] = (),
) -> Match:
    """Finds the weights of a network in a file.

    Args:
        network: whose weights are looked for.
        path: of the file, see `read_file`.
        what: the network, for messages.
        content: of the file, if already read.
        spellings: functions from the network's names to alternative names that the file may use.
        optional: names of weights that the file may have and the network ignores.

    Raises:
        ConfigError: the file cannot be read; or the network's weights are not in it, or are there several
            times with different values.
    """
    wanted = network.state_dict()
    places = places_of(read_file(path) if content is None else content, path)
    tried: tuple[Names, ...] = (*spellings, str)
    matches = [
        match for place in places for spelled in tried for match in _matches(wanted, place, spelled, optional)
    ]
    complete = [match for match in matches if not match.missing and not match.foreign]
    if not complete:
        raise ConfigError(_why_unfit(matches, places, wanted, path, tried, what))
    match = complete[0]
    others = [m for m in complete[1:] if not _equal(m.tensors, match.tensors)]
    if others and "ema" not in re.split(r"[._]", match.place.where):
        spots = sorted({f"{m.place.where}: {m.prefix}*" for m in (match, *others)})
        raise ConfigError(
            f"{path} holds weights of {what} in several places, with different values: {listed(spots)}; save "
            "only the ones that you want: torch.save(model.state_dict(), path)"
        )
    return match


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one.keys() & other.keys())


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
    tried: Sequence[Names],
    what: str,
) -> str:
    best = max(matches, key=lambda match: len(match.names) - len(match.foreign), default=None)
    if best is None:
        largest = max(places, key=lambda place: len(place.tensors))
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


def load_fitting(
    network: nn.Module,
    path: str | Path,
    what: str,
    content: Any = None,
    spellings: Sequence[Names] = (),
    optional: Sequence[str] = (),
) -> None:
    """Loads what `fitting` finds; arguments and errors of `fitting` and `load_match`."""
    load_match(network, fitting(network, path, what, content, spellings, optional), path)


def load_match(network: nn.Module, match: Match, path: str | Path) -> None:
    """Loads the weights of a match; BatchNorm counters missing in the file keep their values.

    Raises:
        ConfigError: a weight has another shape or kind of dtype, or is not finite.
    """
    state = network.state_dict()
    broken = []
    for name, tensor in match.tensors.items():
        key, own = match.names[name], state[name]
        if _squeezed(tensor) != _squeezed(own):
            raise ConfigError(
                f"{path} does not fit: expected {key!r} of shape {tuple(own.shape)}, found "
                f"{tuple(tensor.shape)}"
            )
        if own.is_floating_point() != tensor.is_floating_point():
            raise ConfigError(f"{path} does not fit: expected {key!r} as {own.dtype}, found {tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            broken.append(key)
        state[name] = tensor.reshape(own.shape)
    if broken:
        raise ConfigError(
            f"{path} holds weights that are not finite (NaN or infinite): {listed(broken)}. The training "
            "has diverged, or the file is damaged; use an earlier checkpoint"
        )
    network.load_state_dict(state)


def _squeezed(tensor: Tensor) -> tuple[int, ...]:
    """The shape without trailing ones: a linear layer is equivalent to a 1x1 convolution."""
    shape = list(tensor.shape)
    while shape and shape[-1] == 1:
        shape.pop()
    return tuple(shape)
