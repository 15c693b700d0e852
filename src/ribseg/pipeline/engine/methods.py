"""The methods of a configuration, by name, and the sources of localization maps that there are."""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from ribseg.checks import check_choice, check_number, check_switch, within
from ribseg.errors import ConfigError, RibsegError, reason
from ribseg.methods.base import Method, bind, takes
from ribseg.pipeline.engine.context import build
from ribseg.pipeline.engine.digest import plain
from ribseg.pipeline.engine.sources import is_foreign

# Settings of an entry that are for the stages; all others are arguments of what `_target_` names.
FOR_STAGES = ("label", "control", "references", "maps_of")
SHOWN = ("label", "control")
SPEED = ("reference_chunk", "compile")  # of RIB; they change maps by rounding
AUTO = "auto"
REFERENCE = re.compile(r"\$\{(\w+)\}")  # of an entry to a group of its own


@dataclass(frozen=True)
class Entry:
    """An entry of `methods`.

    Attributes:
        name: of the method and of its stage.
        node: its settings as plain values.
        path: where these are set, as "methods.cam", or "rib" for an entry that refers to the group `rib`.
    """

    name: str
    node: Mapping[str, Any]
    path: str

    @property
    def label(self) -> str:
        """What tables and pictures call it."""
        return str(self.node.get("label") or self.name.replace("_", " "))

    @property
    def control(self) -> bool:
        """Whether it stands beside the methods, for comparison."""
        return bool(self.node.get("control", False))

    @property
    def maps_of(self) -> str | None:
        """The method whose maps it changes when they are scored; None for a method with maps of its own."""
        return self.node.get("maps_of")

    @property
    def inner(self) -> Mapping[str, Any]:
        """Its settings, or those of the method that it wraps (as the control `wrong_class` wraps RIB)."""
        wrapped = self.node.get("method")
        return wrapped if isinstance(wrapped, Mapping) else self.node

    @property
    def references(self) -> int:
        """Reference images a step."""
        number = self.inner.get("references", 0)
        return number if isinstance(number, int) else 0  # `check_entries` refuses others

    @property
    def searches_rate(self) -> bool:
        """Whether its learning rate is to be searched."""
        return self.inner.get("lr") == AUTO

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What its maps depend on, for a digest."""
        return _without(self.node, SHOWN, SPEED)

    @cached_property
    def inner_settings(self) -> dict[str, Any]:
        """What the method that it wraps depends on, for a digest."""
        return _without(self.inner, SHOWN, SPEED)

    def arguments(self, lr: float | None = None) -> dict[str, Any]:
        """The node that builds it: without what is for the stages, with a learning rate that was found."""
        node = _without(self.node, FOR_STAGES)
        inner = node["method"] if self.inner is not self.node else node
        node["_partial_"] = inner["_partial_"] = True  # built for each classifier, see `bind`
        if lr is not None and self.searches_rate:
            inner["lr"] = lr
        return node

    def build(self, classifier: nn.Module, lr: float | None = None, inner: bool = False) -> Method:
        """The method of a classifier.

        Args:
            classifier: see `ribseg.methods.base.bind`.
            lr: in the place of `lr=auto`.
            inner: the method that it wraps, alone.

        Raises:
            ConfigError: it cannot be built, or called as methods are.
        """
        node = self.arguments(lr)
        with within(self.path):
            wanted = node["method"] if inner and self.inner is not self.node else node
            factory = build(OmegaConf.create(wanted))
            try:
                method = bind(factory, classifier)
            except RibsegError:
                raise
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{wanted['_target_']}: {reason(error)}") from error
            for name in ("views", "labels"):
                if not callable(method) or not takes(method, name):
                    raise ConfigError(
                        "expected what takes views= and labels=, see ribseg.methods.base.Method; "
                        f"{node.get('_target_')} gives {type(method).__name__}"
                    )
        return method


def _without(node: Mapping[str, Any], *groups: tuple[str, ...]) -> dict[str, Any]:
    """A copy of a node and of the method that it wraps, without some settings; users' own keep theirs."""
    names = {name for group in groups for name in group}
    if is_foreign(str(node.get("_target_", ""))):
        names -= set(SPEED)
    kept = {name: value for name, value in node.items() if name not in names}
    if isinstance(kept.get("method"), Mapping):
        kept["method"] = _without(kept["method"], *groups)
    return kept


def entries(cfg: Mapping[str, Any]) -> dict[str, Entry]:
    """Name -> entry of `methods`, without those that are left out by null."""
    methods = cfg["methods"]
    raw: Any = OmegaConf.to_container(methods, resolve=False) if OmegaConf.is_config(methods) else methods
    found: dict[str, Entry] = {}
    for name in raw:
        reference = REFERENCE.fullmatch(raw[name]) if isinstance(raw[name], str) else None
        node = plain(methods[name])
        if node:
            found[name] = Entry(name, node, reference[1] if reference else f"methods.{name}")
    return found


def check_entries(cfg: Mapping[str, Any]) -> None:
    """Whether the entries can be entries.

    Raises:
        ConfigError: one has no `_target_`, or a setting for the stages is out of range.
    """
    known = entries(cfg)
    for entry in known.values():
        with within(entry.path):
            if not isinstance(entry.node, Mapping) or "_target_" not in entry.node:
                raise ConfigError("expected a _target_ with the name of a method, as my_file.MyMethod")
            check_switch("control", entry.node.get("control", False))
            check_number("references", entry.inner.get("references", 0), low=0, whole=True)
            if entry.maps_of is not None:
                check_choice("maps_of", entry.maps_of, [n for n, e in known.items() if e.maps_of is None])


@dataclass(frozen=True)
class MapSource:
    """Localization maps that can be scored, shown and refined.

    Attributes:
        name: in `results.json`.
        stage: that has made them.
        label: in tables.
        control: see `Entry.control`.
        entry: that changes the stage's maps when they are read; None leaves them.
    """

    name: str
    stage: str
    label: str
    control: bool = False
    entry: Entry | None = None


IMPORTED, WALKED = "imported", "random_walk"  # stages that make maps and are no methods


def map_sources(cfg: Mapping[str, Any]) -> dict[str, MapSource]:
    """Name -> source of maps: methods, imported maps, maps after the random walk, controls."""
    found = [
        MapSource(name, entry.maps_of or name, entry.label, entry.control, entry if entry.maps_of else None)
        for name, entry in entries(cfg).items()
    ]
    others = [MapSource(IMPORTED, IMPORTED, "imported"), MapSource(WALKED, WALKED, "+ random walk")]
    ordered = [*(s for s in found if not s.control), *others, *(s for s in found if s.control)]
    return {source.name: source for source in ordered}


def refinable(cfg: Mapping[str, Any]) -> list[str]:
    """Names of the stages whose maps can be refined: of methods, controls and imported maps."""
    return [name for name, entry in entries(cfg).items() if entry.maps_of is None] + [IMPORTED]


def drawing_methods(cfg: Mapping[str, Any], chosen: Container[str]) -> list[Entry]:
    """The chosen methods that draw reference images; their controls draw others."""
    return [e for e in entries(cfg).values() if e.name in chosen and e.references and not e.control]
