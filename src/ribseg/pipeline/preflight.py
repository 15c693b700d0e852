"""Checks of a whole run before its first stage."""

from collections.abc import Mapping, Sequence
from typing import Any

from ribseg.checks import within
from ribseg.data.check.data_notes import nothing_to_learn
from ribseg.errors import ConfigError, DataError
from ribseg.methods.segments import ENDINGS
from ribseg.pipeline.data_checks import check_data, check_full_masks, note_data, skip_broken
from ribseg.pipeline.part_checks import check_callbacks, check_imports, check_parts, check_settings
from ribseg.pipeline.plan import REPORT
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.stages.bottleneck import BottleneckStage, check_bottleneck
from ribseg.pipeline.stages.chains import FULL, REFINEMENT, chains, segmenter_name
from ribseg.pipeline.stages.evaluate import EvaluateStage, ready_sources
from ribseg.pipeline.stages.export import ExportStage, check_export
from ribseg.pipeline.stages.imported import check_imported
from ribseg.pipeline.stages.pseudo_masks import PseudoMasksStage, check_refinement
from ribseg.pipeline.stages.segmenter import SegmenterStage, check_segmenter
from ribseg.pipeline.stages.segmenter_scores import SegmenterTestStage
from ribseg.pipeline.stages.segments import check_segment_files
from ribseg.pipeline.stages.variants import Variant
from ribseg.store.artefact import MANIFEST, Artefact
from ribseg.store.stage import Stage


def preflight(
    context: Context, stages: Sequence[Stage], reported: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Checks in seconds what would otherwise fail after hours, and plans the artefacts of all stages.

    Args:
        context: of the run.
        stages: all stages of the configuration.
        reported: data facts whose notes have been printed already.

    Returns:
        The data facts, "data" in `results.json`; empty if no stage reads the data set.

    Raises:
        RibsegError: settings, data or store cannot work.
    """
    check_settings(context.cfg)
    check_imports(context.cfg, stages)
    check_callbacks(context, stages)
    _ = context.engine  # as below, one that cannot be built
    _ = context.result_loggers  # built now, so that a logger that cannot be built ends the run at once
    facts: dict[str, Any] = {}
    if reads_data(context, stages):
        facts = preflight_data(context, [stage for stage in stages if stage.reads_data], reported or {})
    if BottleneckStage.name in context.cfg.run:
        check_bottleneck(context)
        plan_stages(context, [stage for stage in stages if not stage.reads_data])
    return facts


def reads_data(context: Context, stages: Sequence[Stage]) -> bool:
    """Whether a chosen stage reads the data set; a run of the report alone counts as such."""
    alone = {stage.name for stage in stages if not stage.reads_data}
    chosen = set(context.cfg.run) - {REPORT}
    return not chosen or bool(chosen - alone)


def preflight_data(context: Context, stages: Sequence[Stage], reported: Mapping[str, Any]) -> dict[str, Any]:
    """Does the part of `preflight` for the stages that read the data set; returns the data facts."""
    with within("data"):
        context.data.setup()
    if not context.data.train.labels.any():
        raise DataError(nothing_to_learn(context.data.train, str(context.cfg.data.labels)))
    # Skipped images change the lists, and so the digests of all results: then the files are checked first.
    # Otherwise last, because that takes long and a wrong setting should be reported at once.
    skips = context.data.on_error == "skip"
    if skips:
        context.on_first(lambda: check_data(context))
        skip_broken(context)
    facts = note_data(context, reported)
    check_chains(context)
    if ExportStage.name in context.cfg.run:
        check_export(context)
    plan_stages(context, stages)
    check_imported(context)
    check_parts(context, stages)
    check_segments(context)
    check_segmenters(context, stages)
    if not skips:
        context.on_first(lambda: check_data(context))
        facts = note_data(context, facts)
    if any(stage.in_shards and context.will_run(stage.name) for stage in stages):
        context.on_first(lambda: context.engine.start())
    if any(context.will_run(stage.name) for stage in stages):
        context.console.say(f"{context.store.free_space} free in {context.store.root}", "disk")
    return facts


def check_chains(context: Context) -> None:
    """Checks the chains of refinement of which the run has a stage."""
    for chain in chains(context.cfg):
        if {chain.name(kind) for kind in REFINEMENT} & set(context.cfg.run):
            check_refinement(context, chain)


def check_segments(context: Context) -> None:
    """Checks the files of segments, if this run makes pseudo masks with them."""
    cfg = context.cfg
    if cfg.refine.segments.source not in ENDINGS:
        return
    making = [chain for chain in chains(cfg) if context.will_run(chain.name(PseudoMasksStage.kind))]
    if any(Variant.parse(name).segments for chain in making for name in chain.variants(cfg)):
        context.on_first(lambda: check_segment_files(context))


def plan_stages(context: Context, stages: Sequence[Stage]) -> None:
    """Plans the artefacts of stages, and checks that the inputs of the chosen ones exist or will be made."""
    for stage in stages:
        if stage.wanted(context) and (stage.name != EvaluateStage.name or wants_scores(context)):
            check_complete(context, stage, context.plan(stage))
    context.begin_reruns()
    for stage in stages:
        check_inputs(context, stage)


def check_segmenters(context: Context, stages: Sequence[Stage]) -> None:
    """Checks the segmenters that the run trains or tests."""
    run = set(context.cfg.run)
    chosen = (s for s in stages if isinstance(s, SegmenterStage | SegmenterTestStage) and s.name in run)
    for source in dict.fromkeys(stage.source for stage in chosen):
        check_segmenter(context, source)
    if segmenter_name(FULL) in run:
        context.on_first(lambda: check_full_masks(context))


def check_complete(context: Context, stage: Stage, artefact: Artefact) -> None:
    """Deletes the manifest of a finished artefact that lacks files, so that the stage makes them again."""
    if context.agree(artefact.finished and not stage.complete(context, artefact)):
        context.console.say(f"files are gone from {artefact.folder}; not finished", stage.name)
        context.on_first(lambda: (artefact.folder / MANIFEST).unlink(missing_ok=True))


def check_inputs(context: Context, stage: Stage) -> None:
    """Raises a ConfigError if an input of a chosen stage is neither in the store nor made by this run."""
    chosen = context.cfg.run
    if stage.name not in chosen:
        return
    absent = [n for n in stage.required(context) if n not in chosen and not context.is_ready(n)]
    if absent:
        raise ConfigError(
            f"stage {stage.name} needs {', '.join(absent)}, which the store {context.store.root} does not "
            f"hold for these settings; run=[{','.join([*absent, *chosen])}] makes it"
        )


def wants_scores(context: Context) -> bool:
    """Whether the run evaluates localization maps, or reports an evaluation of maps in the store."""
    if EvaluateStage.name in context.cfg.run:
        return True
    return bool(context.data.eval_splits) and REPORT in context.cfg.run and bool(ready_sources(context))
