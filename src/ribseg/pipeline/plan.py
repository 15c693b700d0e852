"""The stages of a configuration, and those that `run` and `rerun` select."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig

from ribseg.errors import ConfigError
from ribseg.pipeline.recipe.methods import Entry, entries
from ribseg.pipeline.stages.affinity import AffinityLabelsStage, AffinityStage, RandomWalkStage
from ribseg.pipeline.stages.attention import AttentionStage
from ribseg.pipeline.stages.bottleneck import BottleneckStage
from ribseg.pipeline.stages.chains import (
    REFINEMENT,
    Chain,
    chains,
    left_out,
    names_of,
    segmenter_name,
    segmenter_sources,
    segmenter_test_name,
)
from ribseg.pipeline.stages.classifier import CHECKPOINTS, ClassifierStage
from ribseg.pipeline.stages.evaluate import EvaluateStage
from ribseg.pipeline.stages.export import ExportStage
from ribseg.pipeline.stages.imported import ImportedStage
from ribseg.pipeline.stages.maps import MethodStage
from ribseg.pipeline.stages.pseudo_masks import PseudoMasksStage
from ribseg.pipeline.stages.segmenter import SegmenterStage
from ribseg.pipeline.stages.segmenter_scores import SegmenterTestStage
from ribseg.pipeline.stages.toy_networks import ToyNetworksStage
from ribseg.store.stage import Stage

SEGMENTER = "segmenter"  # group of the segmenters of all sources
REPORT, CHECK_DATA = "report", "check_data"


def stages_of(cfg: Mapping[str, Any]) -> list[Stage]:
    """All stages of a configuration, each after its inputs."""
    methods = [entry for entry in entries(cfg).values() if entry.maps_of is None]
    sources = segmenter_sources(cfg)
    return [
        ClassifierStage(),
        *(MethodStage(entry) for entry in methods),
        ImportedStage(),
        *(stage for chain in chains(cfg) for stage in refinement_stages(chain)),
        EvaluateStage(),
        *(SegmenterStage(source) for source in sources),
        *(SegmenterTestStage(source) for source in sources),
        ExportStage(),
        ToyNetworksStage(),
        BottleneckStage(),
    ]


def refinement_stages(chain: Chain) -> list[Stage]:
    """The stages of a refinement chain, in order."""
    kinds = (AffinityLabelsStage, AffinityStage, RandomWalkStage, AttentionStage, PseudoMasksStage)
    return [kind(chain) for kind in kinds]


def groups_of(cfg: Mapping[str, Any], chosen: Iterable[str]) -> dict[str, list[str]]:
    """Group name -> its stages: methods, controls, refine, segmenter, bottleneck.

    Args:
        cfg: the composed configuration.
        chosen: names in `run`; with "segmenter", "refine" includes the chains of all its sources.
    """
    made: list[Entry] = [entry for entry in entries(cfg).values() if entry.maps_of is None]
    sources, all_chains = list(cfg["segmenter"]["sources"]), chains(cfg)
    learnt = sources if SEGMENTER in set(chosen) else []
    refined = [chain for chain in all_chains if chain.main or chain.maps in learnt]
    return {
        "methods": [entry.name for entry in made if not entry.control],
        "controls": [entry.name for entry in made if entry.control],
        "refine": [chain.name(kind) for chain in refined for kind in chain.kinds(cfg)],
        SEGMENTER: [name(source) for name in (segmenter_name, segmenter_test_name) for source in sources],
        "bottleneck": [ToyNetworksStage.name, BottleneckStage.name],
    }


def chosen_stages(cfg: DictConfig, names: Iterable[str] | str | None) -> list[str]:
    """The names of stages, with groups expanded and without repetitions.

    Args:
        cfg: the composed configuration.
        names: of stages and groups.

    Raises:
        ConfigError: an unknown name, or none at all.
    """
    check_sources(cfg)
    given_names = names_of(names)
    groups = groups_of(cfg, given_names)
    known = {CHECK_DATA, REPORT, *(stage.name for stage in stages_of(cfg))}
    chosen = [name for given in given_names for name in groups.get(given, [given])]
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        public = [*groups, *groups["methods"], *groups["controls"], *REFINEMENT]
        others = ["classifier", "imported", "evaluate", "export", CHECK_DATA, REPORT]
        raise ConfigError(
            f"expected run=[...] with some of {', '.join(dict.fromkeys([*others, *public]))}; "
            f"got {', '.join(unknown) or 'nothing'}"
        )
    return list(dict.fromkeys(chosen))


def planned_stages(cfg: DictConfig) -> list[str]:
    """The stages of `run`, and the classifier if a checkpoint of one is given and a method needs it.

    Raises:
        ConfigError: an unknown name, or none at all.
    """
    chosen = chosen_stages(cfg, cfg.run)
    given = any(cfg.classifier.get(name) for name in CHECKPOINTS)
    taking = [entry.name for entry in entries(cfg).values() if not entry.without_classifier]
    takes_it = given and not set(taking).isdisjoint(chosen)
    return list(dict.fromkeys([ClassifierStage.name, *chosen])) if takes_it else chosen


def planned(cfg: DictConfig) -> tuple[DictConfig, bool]:
    """A copy of the configuration with groups in `run` and `rerun` expanded, and whether to check the data.

    Returns:
        The copy, whose `run` lacks check_data, and whether it was there.

    Raises:
        ConfigError: an unknown name, or none at all.
    """
    plan = copy.deepcopy(cfg)
    plan.run = planned_stages(cfg)
    plan.rerun = rerun_stages(plan)
    checks_data = CHECK_DATA in plan.run
    plan.run = [name for name in plan.run if name != CHECK_DATA]
    return plan, checks_data


def rerun_stages(cfg: DictConfig) -> list[str]:
    """The stages that `rerun` selects.

    Raises:
        ConfigError: an unknown name, or one that `run` does not select.
    """
    if not cfg.rerun:
        return []
    names = chosen_stages(cfg, cfg.rerun)
    absent = [name for name in names if name not in cfg.run]
    if absent:
        raise ConfigError(f"rerun=[...] names {', '.join(absent)}, which run=[{','.join(cfg.run)}] does not")
    return names


def check_sources(cfg: Mapping[str, Any]) -> None:
    """Raises a ConfigError if `segmenter.sources` or `export.source` names an unknown source.

    A method that has been left out is one only if the run trains or exports its segmenter.
    """
    known, by_group = segmenter_sources(cfg), {SEGMENTER: [*cfg["segmenter"]["sources"]]}
    by_group[ExportStage.name] = [cfg["export"]["source"]]
    named = [name for group in by_group.values() for name in group]
    used = {name for group, names in by_group.items() if group in names_of(cfg["run"]) for name in names}
    if not set(named) <= {*known, *(left_out(cfg) - used)}:
        raise ConfigError(
            f"expected segmenter.sources=[...] and export.source out of {', '.join(known)}, got "
            f"{', '.join(named)}"
        )
