"""The stages of a configuration, and those that `run` and `rerun` select."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ribseg.errors import ConfigError
from ribseg.pipeline.recipe.session import CHECK_DATA, REPORT, RunSettings, Session
from ribseg.pipeline.report.finished import FinishedRun
from ribseg.pipeline.report.settings import ReportSettings
from ribseg.pipeline.stages import affinity
from ribseg.pipeline.stages.attention import AttentionSettings, AttentionStage
from ribseg.pipeline.stages.bottleneck import BottleneckStage
from ribseg.pipeline.stages.chains import (
    REFINEMENT,
    RefinementStage,
    chains,
    left_out,
    names_of,
    segmenter_name,
    segmenter_sources,
    segmenter_test_name,
)
from ribseg.pipeline.stages.classifier import ClassifierSettings, ClassifierStage
from ribseg.pipeline.stages.evaluate import EvaluateSettings, EvaluateStage
from ribseg.pipeline.stages.export import ExportSettings, ExportStage
from ribseg.pipeline.stages.imported import ImportedSettings, ImportedStage
from ribseg.pipeline.stages.learning_rate import RateSearchSettings
from ribseg.pipeline.stages.maps import MapsSettings, MethodStage
from ribseg.pipeline.stages.pseudo_masks import MaskSettings, PseudoMasksStage
from ribseg.pipeline.stages.saliency import SaliencySettings, SaliencyStage
from ribseg.pipeline.stages.segmenter import SegmenterSettings, SegmenterStage
from ribseg.pipeline.stages.segmenter_scores import SegmenterTestStage
from ribseg.pipeline.stages.toy_networks import BottleneckSettings
from ribseg.store.run import LocalEngine, Run
from ribseg.store.stage import Stage

# Section of the configuration -> who reads it. "" is its top.
KINDS: dict[str, list[type]] = {
    "": [RunSettings],
    "maps": [MapsSettings],
    "rate_search": [RateSearchSettings],
    "evaluate": [EvaluateSettings],
    "report": [ReportSettings],
    "classifier": [ClassifierSettings],
    "imported": [ImportedSettings],
    "affinity": [affinity.AffinitySettings],
    "refine": [
        affinity.LabelSettings,
        affinity.WalkSettings,
        AttentionSettings,
        SaliencySettings,
        MaskSettings,
    ],
    "segmenter": [SegmenterSettings],
    "export": [ExportSettings],
    "bottleneck": [BottleneckSettings],
}


def stages_of(session: Session) -> list[Stage[Session]]:
    """All stages of a configuration, each after those that it reads.

    Raises:
        ConfigError: `segmenter.sources`, `export.source` or `refine.maps` names no source of maps.
    """
    check_sources(session)
    classifier = ClassifierStage(session)
    maps: list[Stage[Session]] = [MethodStage(session, entry, classifier) for entry in session.makers]
    maps.append(ImportedStage(session))
    by_name = {stage.name: stage for stage in maps}
    saliency = SaliencyStage(session)
    refinement: list[RefinementStage] = []
    masks: dict[str, PseudoMasksStage] = {}
    for chain in chains(session):
        labels = affinity.AffinityLabelsStage(session, chain, by_name[chain.maps])
        training = affinity.AffinityStage(session, labels, classifier)
        walk = affinity.RandomWalkStage(session, training)
        attention = AttentionStage(session, chain, labels.maps, classifier)
        masks[chain.maps] = PseudoMasksStage(session, walk, attention, saliency)
        refinement += [labels, training, walk, attention, masks[chain.maps]]
    sources = segmenter_sources(session)
    segmenters = {s: SegmenterStage(session, s, masks.get(s), classifier) for s in sources}
    tests = {source: SegmenterTestStage(session, stage) for source, stage in segmenters.items()}
    bottleneck = BottleneckStage(session)
    return [
        classifier,
        *maps,
        saliency,
        *refinement,
        EvaluateStage(session),
        *segmenters.values(),
        *tests.values(),
        ExportStage(session, segmenters, tests),
        bottleneck.networks,
        bottleneck,
    ]


def groups_of(session: Session, chosen: Iterable[str]) -> dict[str, list[str]]:
    """Group name -> its stages: methods, controls, refine, segmenter, bottleneck.

    Args:
        session: of the run.
        chosen: names in `run`; with "segmenter", "refine" includes the chains of all its sources.
    """
    sources = list(session.settings[SegmenterSettings].sources)
    variants = session.settings[MaskSettings].variants
    learnt = sources if "segmenter" in set(chosen) else []
    refined = [chain for chain in chains(session) if chain.main or chain.maps in learnt]
    return {
        "methods": [entry.name for entry in session.makers if not entry.control],
        "controls": [entry.name for entry in session.makers if entry.control],
        "refine": [
            *([SaliencyStage.name] if session.settings[SaliencySettings].made else []),
            *(chain.name(kind) for chain in refined for kind in chain.kinds(variants)),
        ],
        "segmenter": [name(source) for name in (segmenter_name, segmenter_test_name) for source in sources],
        "bottleneck": ["toy_networks", BottleneckStage.name],
    }


def selected(session: Session, stages: Sequence[Stage[Session]], names: Any) -> list[str]:
    """The names of stages, with groups expanded and without repetitions.

    Args:
        session: of the run.
        stages: all stages.
        names: of stages and groups.

    Raises:
        ConfigError: an unknown name, or none at all.
    """
    given_names = names_of(names)
    groups = groups_of(session, given_names)
    known = {CHECK_DATA, REPORT, *(stage.name for stage in stages)}
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


def selection(session: Session, stages: Sequence[Stage[Session]]) -> tuple[list[str], list[str]]:
    """The names that `run` and `rerun` select; the classifier too, if its checkpoint is given and needed.

    Raises:
        ConfigError: an unknown name, none at all, or one in `rerun` that `run` does not select.
    """
    chosen = selected(session, stages, session.cfg.run)
    taking = {entry.name for entry in session.entries.values() if not entry.without_classifier}
    if session.settings[ClassifierSettings].given and not taking.isdisjoint(chosen):
        chosen = list(dict.fromkeys([ClassifierStage.name, *chosen]))
    again = selected(session, stages, session.cfg.rerun) if session.cfg.rerun else []
    if absent := [name for name in again if name not in chosen]:
        raise ConfigError(f"rerun=[...] names {', '.join(absent)}, which run=[{','.join(chosen)}] does not")
    return chosen, again


def check_sources(session: Session) -> None:
    """Raises a ConfigError if `segmenter.sources` or `export.source` names an unknown source.

    A method that has been left out is one only if the run trains or exports its segmenter.
    """
    cfg, run = session.cfg, names_of(session.cfg.run)
    sources, exported = list(cfg.segmenter.sources), [cfg.export.source]
    used = {*(sources if "segmenter" in run else ()), *(exported if "export" in run else ())}
    named, known = [*sources, *exported], segmenter_sources(session)
    if not set(named) <= {*known, *(left_out(session) - used)}:
        raise ConfigError(
            f"expected segmenter.sources=[...] and export.source out of {', '.join(known)}, got "
            f"{', '.join(map(str, named))}"
        )


def reopened(run: FinishedRun, output: Path) -> Session:
    """A session with settings, data and artefacts of a finished run, whose files are written to `output`."""
    session = Session(run.cfg, output, KINDS)
    stages = stages_of(session)
    chosen = [name for name in selection(session, stages)[0] if name != CHECK_DATA]
    session.run = Run(stages, chosen, engine=LocalEngine())
    session.run.adopt(run.artefacts)
    if "skipped" in run.results:
        session.skip(run.results["skipped"])
    return session
