"""The entries of `methods`, and all sources of localization maps, of a configuration."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from ribseg.checks import check_choice, check_number, check_switch, within
from ribseg.errors import ConfigError, RibsegError, reason
from ribseg.methods.base import Method, bind, takes
from ribseg.pipeline.recipe.build import build, plain
from ribseg.store.sources import is_foreign

# Settings of an entry that the stages read; all others are arguments of its `_target_`.
FOR_STAGES = ("label", "control", "references", "maps_of", "without_classifier")
SHOWN = ("label", "control")
SPEED = ("reference_chunk", "compile")  # of RIB; they change maps by rounding errors only
AUTO = "auto"
REFERENCE = re.compile(r"\$\{(\w+)\}")  # an entry that is an interpolation of another section


@dataclass(frozen=True)
class Entry:
    """An entry of `methods`.

    Attributes:
        name: of the method and of its stage.
        node: its settings as plain values.
        path: of the settings, as "methods.cam", or "rib" for an entry that refers to the section `rib`.
    """

    name: str
    node: Mapping[str, Any]
    path: str

    @property
    def label(self) -> str:
        """Its name in tables and pictures."""
        return str(self.node.get("label") or self.name.replace("_", " "))

    @property
    def control(self) -> bool:
        """Whether it is a control: for comparison, not a method to use."""
        return bool(self.node.get("control", False))

    @property
    def maps_of(self) -> str | None:
        """The method whose maps it modifies for scoring; None for a method that makes maps itself."""
        return self.node.get("maps_of")

    @property
    def without_classifier(self) -> bool:
        """Whether it is made without the classifier, which is then neither trained nor loaded for it."""
        return bool(self.node.get("without_classifier", False))

    @property
    def inner(self) -> Mapping[str, Any]:
        """Its settings, or those of the method that it wraps (as the control `wrong_class` wraps RIB)."""
        wrapped = self.node.get("method")
        return wrapped if isinstance(wrapped, Mapping) else self.node

    @property
    def references(self) -> int:
        """Number of reference images per step."""
        number = self.inner.get("references", 0)
        return number if isinstance(number, int) else 0  # `check_entries` rejects others

    @property
    def searches_rate(self) -> bool:
        """Whether its learning rate is to be searched."""
        return self.inner.get("lr") == AUTO

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that its maps depend on, for a digest."""
        return _without(self.node, SHOWN, SPEED)

    @cached_property
    def inner_settings(self) -> dict[str, Any]:
        """The same of the method that it wraps."""
        return _without(self.inner, SHOWN, SPEED)

    def arguments(self, lr: float | None = None) -> dict[str, Any]:
        """The configuration that builds it: without the settings of the stages; `lr` replaces lr=auto."""
        node = _without(self.node, FOR_STAGES)
        inner = node["method"] if self.inner is not self.node else node
        node["_partial_"] = inner["_partial_"] = True  # built for each classifier, see `bind`
        if lr is not None and self.searches_rate:
            inner["lr"] = lr
        return node

    def build(
        self,
        classifier: nn.Module | None,
        lr: float | None = None,
        inner: bool = False,
        classes: Sequence[str] | None = None,
    ) -> Method:
        """The method, built for a classifier.

        Args:
            classifier: see `ribseg.methods.base.bind`; not passed on with `without_classifier`.
            lr: replaces `lr=auto`.
            inner: build only the method that it wraps.
            classes: see `ribseg.methods.base.bind`.

        Raises:
            ConfigError: it cannot be built, or is not callable as a method.
        """
        node = self.arguments(lr)
        with within(self.path):
            wanted = node["method"] if inner and self.inner is not self.node else node
            factory = build(OmegaConf.create(wanted))
            try:
                method = bind(factory, None if self.without_classifier else classifier, classes)
            except RibsegError:
                raise
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{wanted['_target_']}: {reason(error)}") from error
            for name in ("views", "labels"):
                if not callable(method) or not takes(method, name):
                    raise ConfigError(
                        "expected a callable with views= and labels=, see ribseg.methods.base.Method; "
                        f"{node.get('_target_')} gives {type(method).__name__}"
                    )
        return method


def _without(node: Mapping[str, Any], *groups: tuple[str, ...]) -> dict[str, Any]:
    """A copy of an entry and the method that it wraps, without some settings; the user's keep SPEED."""
    names = {name for group in groups for name in group}
    if is_foreign(str(node.get("_target_", ""))):
        names -= set(SPEED)
    kept = {name: value for name, value in node.items() if name not in names}
    if isinstance(kept.get("method"), Mapping):
        kept["method"] = _without(kept["method"], *groups)
    return kept


def entries(cfg: Mapping[str, Any]) -> dict[str, Entry]:
    """Name -> entry of `methods`, without those set to null.

    Raises:
        ConfigError: one is no section, has no `_target_`, or a setting that the stages read is out of range.
    """
    methods = cfg["methods"]
    raw: Any = OmegaConf.to_container(methods, resolve=False) if OmegaConf.is_config(methods) else methods
    found: dict[str, Entry] = {}
    for name in methods:
        if not (node := methods[name]):
            continue
        if not isinstance(node, Mapping):
            raise ConfigError(f"methods.{name}: expected a _target_ and its settings, got {node!r}")
        reference = REFERENCE.fullmatch(raw[name]) if isinstance(raw[name], str) else None
        found[name] = Entry(name, plain(node), reference[1] if reference else f"methods.{name}")
    makers = [name for name, entry in found.items() if entry.maps_of is None]
    for entry in found.values():
        with within(entry.path):
            if "_target_" not in entry.node:
                raise ConfigError("expected a _target_ with the name of a method, as my_file.MyMethod")
            for name in ("control", "without_classifier"):
                check_switch(name, entry.node.get(name, False))
            check_number("references", entry.inner.get("references", 0), low=0, whole=True)
            if entry.maps_of is not None:
                check_choice("maps_of", entry.maps_of, makers)
    return found


@dataclass(frozen=True)
class MapSource:
    """A source of localization maps that can be scored, shown and refined.

    Attributes:
        name: in `results.json`.
        stage: that makes them.
        label: in tables.
        control: see `Entry.control`.
        entry: that modifies the stage's maps when they are read; None for none.
    """

    name: str
    stage: str
    label: str
    control: bool = False
    entry: Entry | None = None


# Stages that make maps but are not methods; the last two refine maps, and begin the names of variants.
IMPORTED, WALK, ATTENTION = "imported", "random_walk", "attention"


def map_sources(known: Mapping[str, Entry]) -> dict[str, MapSource]:
    """Name -> source of maps: methods, imported maps, maps after a refinement, controls."""
    found = [
        MapSource(name, entry.maps_of or name, entry.label, entry.control, entry if entry.maps_of else None)
        for name, entry in known.items()
    ]
    labels = {IMPORTED: "imported", WALK: "+ random walk", ATTENTION: "+ attention"}
    others = [MapSource(name, name, label) for name, label in labels.items()]
    ordered = [*(s for s in found if not s.control), *others, *(s for s in found if s.control)]
    return {source.name: source for source in ordered}
