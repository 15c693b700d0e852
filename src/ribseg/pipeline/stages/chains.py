"""Refinement chains: the stages from the maps of one stage to pseudo masks.

The main chain, the stages affinity_labels, affinity, random_walk, attention and pseudo_masks, refines
`refine.maps`; `refine.variants` says which of them it needs. A run can refine the maps of other stages too,
for example to compare segmenters on masks of CAM and of RIB: the stages of these chains have suffixed names,
as pseudo_masks_cam.
"""

from abc import ABC
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ribseg.data.io.maps import LocalizationMaps, load_maps, map_path
from ribseg.errors import ConfigError
from ribseg.pipeline.recipe.methods import ATTENTION, IMPORTED, WALK
from ribseg.pipeline.recipe.session import Session
from ribseg.store.stage import Stage

RIB = "rib"  # what refine.maps, segmenter.sources and export.source name by default
FULL = "full"  # segmenter source: the ground truth (full supervision)
WALKING = ("affinity_labels", "affinity", WALK)  # the walk, and what it needs
REFINEMENT = (*WALKING, ATTENTION, "pseudo_masks")


@dataclass(frozen=True)
class Chain:
    """The refinement of the maps of a stage.

    Attributes:
        maps: name of that stage.
        main: whether it is `refine.maps`; other chains make only the last of `refine.variants`.
    """

    maps: str
    main: bool

    def name(self, kind: str) -> str:
        """The name of this chain's stage of a kind."""
        return kind if self.main else f"{kind}_{self.maps}"

    def variants(self, chosen: Sequence[str]) -> tuple[str, ...]:
        """Those of the chosen variants that it makes; the segmenter is trained on the last one."""
        return tuple(chosen) if self.main else tuple(chosen)[-1:]

    def kinds(self, chosen: Sequence[str]) -> list[str]:
        """The kinds of stages that its variants need, in order."""
        variants = self.variants(chosen)
        walks, attends = (any(name.startswith(part) for name in variants) for part in (WALK, ATTENTION))
        unneeded = {*(() if walks else WALKING), *(() if attends else (ATTENTION,))}
        return [kind for kind in REFINEMENT if kind not in unneeded]


class RefinementStage(Stage[Session], ABC):
    """A stage of a refinement chain.

    Args:
        session: of the run.
        chain: it belongs to.
        maps: the stage whose maps are refined.
    """

    def __init__(self, session: Session, chain: Chain, maps: Stage[Session]) -> None:
        super().__init__(session)
        self.chain, self.maps, self.name = chain, maps, chain.name(self.kind)

    def wanted(self) -> bool:
        """Whether the chain is the main one, or the run or a segmenter needs it."""
        named = {self.chain.name(kind) for kind in REFINEMENT} & set(self.session.run.chosen)
        return self.chain.main or bool(named) or self.chain.maps in active_sources(self.session)

    def read_maps(self, image_id: str) -> LocalizationMaps:
        """The maps of an image, before the refinement."""
        return load_maps(map_path(self.maps.artefact.folder, image_id))


def names_of(setting: Iterable[str] | str | None) -> list[str]:
    """The names in `run` or `rerun`: of one stage or group, of several, or none."""
    return [setting] if isinstance(setting, str) else list(setting or ())


def chains(session: Session) -> list[Chain]:
    """The main chain, and one for every other stage that makes maps.

    There is no main chain if `refine.maps` is a method that has been left out, and the run refines nothing.

    Raises:
        ConfigError: `refine.maps` is not such a stage.
    """
    known, main = refinable(session), session.cfg.refine.maps
    refines = not {"refine", *REFINEMENT}.isdisjoint(names_of(session.cfg.run))
    if main not in known and (refines or main not in left_out(session)):
        raise ConfigError(f"expected refine.maps out of {', '.join(known)}, got {main!r}")
    return [Chain(name, name == main) for name in sorted(known, key=lambda name: name != main)]


def left_out(session: Session) -> set[str]:
    """Names of methods that are set to null; and RIB, which settings name by default, if it is not there."""
    return {RIB, *session.cfg.methods} - set(session.entries)


def refinable(session: Session) -> list[str]:
    """Names of the stages whose maps can be refined: of methods, controls and imported maps."""
    return [*(entry.name for entry in session.makers), IMPORTED]


def segmenter_sources(session: Session) -> list[str]:
    """All sources of segmenters: the stages that make maps (for pseudo masks), and "full" (ground truth)."""
    return [*refinable(session), FULL]


def segmenter_name(source: str) -> str:
    """The stage that trains on a source."""
    return f"segmenter_{source}"


def segmenter_test_name(source: str) -> str:
    """The stage that tests the segmenter of a source."""
    return f"segmenter_test_{source}"


def active_sources(session: Session) -> set[str]:
    """Sources of the configured segmenters, and of those that the run selects or exports."""
    cfg, run = session.cfg, set(session.run.chosen)
    named = {s for s in segmenter_sources(session) if {segmenter_name(s), segmenter_test_name(s)} & run}
    return {*cfg.segmenter.sources, *named, *({cfg.export.source} if "export" in run else ())}
