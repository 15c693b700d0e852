"""The refinement a second time, over the maps of another stage, in the same run.

So a segmenter on the masks of CAM can stand beside the one on the masks of RIB. The stages are the same; they
see the run under another `refine.maps`, and their artefacts have names of their own: `pseudo_masks_cam`.
"""

import copy
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from ribseg.pipeline.engine.context import Context, plain
from ribseg.pipeline.engine.store import Artefact
from ribseg.pipeline.stages.maps import Stage

FULL = "full"  # the ground truth, as a segmenter's source
SOURCES = ("rib", "cam", "imported", FULL)  # of a segmenter: the maps behind its masks
REFINEMENT = ("affinity_labels", "affinity", "random_walk", "pseudo_masks")


class ChainStage(Stage):
    """A stage of the refinement over given maps.

    Args:
        stage: of the refinement.
        maps: the stage whose maps are refined.
    """

    def __init__(self, stage: Stage, maps: str) -> None:
        self.stage, self.maps = stage, maps
        self.parts, self.neutral = stage.parts, stage.neutral
        self.name = chain_name(stage.name, maps)

    def wanted(self, context: Context) -> bool:
        """Whether a segmenter of this run learns from it, or the run names a stage of this chain."""
        named = {chain_name(name, self.maps) for name in REFINEMENT} & set(context.cfg.run)
        other = self.maps in sources_in_play(context) and self.maps != context.cfg.refine.maps
        return bool(named) or other

    def required(self, context: Context) -> tuple[str, ...]:
        """As the stage, by the names of this chain."""
        needs = self.stage.required(over(context, self.maps))
        return tuple(chain_name(name, self.maps) if name in REFINEMENT else name for name in needs)

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """As the stage."""
        return self.stage.complete(over(context, self.maps), artefact)

    def settings(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """As the stage."""
        return self.stage.settings(cfg)

    def data(self, context: Context) -> str:
        """As the stage."""
        return self.stage.data(over(context, self.maps))

    def artefact(self, context: Context) -> Artefact:
        """As the stage; a run with `refine.maps` set so shares what it makes."""
        return self.stage.artefact(over(context, self.maps))

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """As the stage."""
        return self.stage.work(over(context, self.maps), artefact)


def segmenter_name(source: str) -> str:
    """The stage that trains on a source."""
    return f"segmenter_{source}"


def tested_name(source: str) -> str:
    """The stage that tests the segmenter of a source."""
    return f"segmenter_test_{source}"


def sources_in_play(context: Context) -> set[str]:
    """Sources of the configured segmenters, and of those that the run names or exports."""
    cfg = context.cfg
    named = {s for s in SOURCES if {segmenter_name(s), tested_name(s)} & set(cfg.run)}
    exported = {cfg.export.source} if "export" in cfg.run else set()
    return {*cfg.segmenter.sources, *named, *exported}


def chain_name(stage: str, maps: str) -> str:
    """The name of a refinement stage over given maps."""
    return f"{stage}_{maps}"


def masks_stage(context: Context, maps: str) -> str:
    """The stage that makes pseudo masks of given maps."""
    return "pseudo_masks" if maps == context.cfg.refine.maps else chain_name("pseudo_masks", maps)


def over(context: Context, maps: str) -> Context:
    """The run as the stages of a chain see it; of the variants of masks they make only the last."""
    other = copy.copy(context)
    refine = {"maps": maps, "variants": plain(context.cfg.refine.variants)[-1:]}
    other.cfg = OmegaConf.merge(context.cfg, {"refine": refine})  # type: ignore[assignment]
    own = {name: chain_name(name, maps) for name in REFINEMENT}
    other.artefacts = context.artefacts | {
        name: context.artefacts[place] for name, place in own.items() if place in context.artefacts
    }
    return other
