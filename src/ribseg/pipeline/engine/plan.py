"""Which stages there are, and which of them a run has."""

from collections.abc import Iterable, Sequence

from omegaconf import DictConfig

from ribseg.errors import ConfigError
from ribseg.pipeline.report.check_data import CHECK_DATA
from ribseg.pipeline.stages.affinity import AffinityLabelsStage, AffinityStage, RandomWalkStage
from ribseg.pipeline.stages.bottleneck import BottleneckStage
from ribseg.pipeline.stages.chains import (
    FULL,
    REFINEMENT,
    SOURCES,
    ChainStage,
    chain_name,
    segmenter_name,
    tested_name,
)
from ribseg.pipeline.stages.evaluate import EvaluateStage
from ribseg.pipeline.stages.export import ExportStage
from ribseg.pipeline.stages.imported import ImportedStage
from ribseg.pipeline.stages.maps import (
    CAMStage,
    ClassifierStage,
    FeatureNormStage,
    RIBStage,
    Stage,
    WrongClassStage,
)
from ribseg.pipeline.stages.pseudo_masks import PseudoMasksStage
from ribseg.pipeline.stages.segmenter import SegmenterStage
from ribseg.pipeline.stages.segmenter_test import SegmenterTestStage
from ribseg.pipeline.stages.toy_networks import ToyNetworksStage

REFINEMENT_STAGES = (AffinityLabelsStage(), AffinityStage(), RandomWalkStage(), PseudoMasksStage())
# Of which maps there may be a second refinement, beside that of `refine.maps`.
CHAINS = ("rib", "cam")
# In the order in which they run: each stands after what it needs.
STAGES: tuple[Stage, ...] = (
    ClassifierStage(),
    CAMStage(),
    RIBStage(),
    ImportedStage(),
    WrongClassStage(),
    FeatureNormStage(),
    *REFINEMENT_STAGES,
    *(ChainStage(stage, maps) for maps in CHAINS for stage in REFINEMENT_STAGES),
    EvaluateStage(),
    *(SegmenterStage(source) for source in SOURCES),
    *(SegmenterTestStage(source) for source in SOURCES),
    ExportStage(),
    ToyNetworksStage(),
    BottleneckStage(),
)
ALIASES = {
    "controls": ("wrong_class", "feature_norm"),
    "refine": REFINEMENT,
    "bottleneck": ("toy_networks", "bottleneck"),
}
SEGMENTER = "segmenter"  # stands for the segmenters of all sources
REPORT = "report"


def chosen_stages(
    names: Iterable[str] | str | None, sources: Sequence[str] = (), maps: str = "rib"
) -> list[str]:
    """Expands "controls", "refine", "segmenter" and "bottleneck", and checks the names of stages.

    Args:
        names: of stages and groups of them.
        sources: of the segmenters. With "segmenter" chosen, "refine" makes the masks of all of them.
        maps: what "refine" refines.

    Raises:
        ConfigError: an unknown name, or none at all.
    """
    check_sources(sources, maps)
    known = [CHECK_DATA, *(stage.name for stage in STAGES if stage.name not in ALIASES), REPORT]
    given_names = [names] if isinstance(names, str) else list(names or ())
    groups = ALIASES | {
        SEGMENTER: tuple(name(source) for name in (segmenter_name, tested_name) for source in sources)
    }
    if SEGMENTER in given_names:
        others = [source for source in sources if source in CHAINS and source != maps]
        groups["refine"] += tuple(chain_name(name, other) for other in others for name in REFINEMENT)
    chosen = [name for given in given_names for name in groups.get(given, (given,))]
    unknown = [name for name in chosen if name not in (*known, *ALIASES)]
    if unknown or not chosen:
        public = [name for name in known if "_" not in name or name in (*REFINEMENT, *ALIASES["controls"])]
        raise ConfigError(
            f"expected run=[...] with some of {', '.join([*public, *groups])}; "
            f"got {', '.join(unknown) or 'nothing'}"
        )
    return list(dict.fromkeys(chosen))


def rerun_stages(cfg: DictConfig) -> list[str]:
    """The stages that are computed again.

    Raises:
        ConfigError: an unknown name, or one that is not among `run`.
    """
    if not cfg.rerun:
        return []
    names = chosen_stages(cfg.rerun, cfg.segmenter.sources, cfg.refine.maps)
    absent = [name for name in names if name not in cfg.run]
    if absent:
        raise ConfigError(f"rerun=[...] names {', '.join(absent)}, which run=[{','.join(cfg.run)}] does not")
    return names


def check_sources(sources: Iterable[str], maps: str) -> None:
    """Whether segmenters can learn from these, where the run refines the maps of a stage."""
    known = [name for name in SOURCES if name in (*CHAINS, FULL, maps)]
    if not set(sources) <= set(known):
        raise ConfigError(
            f"expected segmenter.sources=[...] and export.source out of {', '.join(known)} (imported with "
            f"refine.maps=imported), got {', '.join(sources)}"
        )
