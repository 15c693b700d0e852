"""Whether a run can work: known in seconds, before anything long begins."""

from collections.abc import Sequence

from ribseg.checks import within
from ribseg.errors import ConfigError, DataError
from ribseg.pipeline.engine.context import Context
from ribseg.pipeline.engine.data_checks import check_data, check_truth, drop_skipped, note_data
from ribseg.pipeline.engine.part_checks import check_callbacks, check_imports, check_parts, check_settings
from ribseg.pipeline.engine.plan import REPORT
from ribseg.pipeline.engine.stage import Stage
from ribseg.pipeline.engine.store import MANIFEST
from ribseg.pipeline.report.data_notes import nothing_to_learn
from ribseg.pipeline.stages.bottleneck import BottleneckStage, check_bottleneck
from ribseg.pipeline.stages.chains import FULL, REFINEMENT, chains, segmenter_name
from ribseg.pipeline.stages.evaluate import EvaluateStage, ready_sources
from ribseg.pipeline.stages.export import ExportStage, check_export
from ribseg.pipeline.stages.imported import check_imported
from ribseg.pipeline.stages.pseudo_masks import check_refinement
from ribseg.pipeline.stages.segmenter import SegmenterStage, check_segmenter
from ribseg.pipeline.stages.segmenter_scores import SegmenterTestStage


def preflight(context: Context, stages: Sequence[Stage]) -> None:
    """Finds in seconds what would otherwise fail after hours, and gives every stage its artefact.

    Args:
        context: of the run.
        stages: all that a run with this configuration may have.

    Raises:
        RibsegError: settings, data or store cannot work.
    """
    check_settings(context.cfg)
    check_imports(context.cfg, stages)
    check_callbacks(context, stages)
    _ = context.result_loggers  # made now: one that cannot be is said before anything long begins
    if reads_data(context, stages):
        preflight_data(context, [stage for stage in stages if stage.reads_data])
    if BottleneckStage.name in context.cfg.run:
        check_bottleneck(context)
        plan_stages(context, [stage for stage in stages if not stage.reads_data])


def reads_data(context: Context, stages: Sequence[Stage]) -> bool:
    """Whether a chosen stage reads the data set; a report alone is one of the stages that do."""
    alone = {stage.name for stage in stages if not stage.reads_data}
    chosen = set(context.cfg.run) - {REPORT}
    return not chosen or bool(chosen - alone)


def preflight_data(context: Context, stages: Sequence[Stage]) -> None:
    """The part of `preflight` for the stages that read the data set."""
    with within("data"):
        context.data.setup()
    if not context.data.train.labels.any():
        raise DataError(nothing_to_learn(context.data.train, str(context.cfg.data.labels)))
    # What is skipped changes the lists, and with them where results lie. Else the files come last: to open
    # them all takes long, and a wrong setting is to be said at once.
    skips = context.data.on_error == "skip"
    if skips:
        context.on_first(lambda: check_data(context))
        drop_skipped(context)
    note_data(context)
    for chain in chains(context.cfg):
        if {chain.name(kind) for kind in REFINEMENT} & set(context.cfg.run):
            check_refinement(context, chain)
    if ExportStage.name in context.cfg.run:
        check_export(context)
    plan_stages(context, stages)
    check_imported(context)
    check_parts(context, stages)
    check_segmenters(context, stages)
    if not skips:
        context.on_first(lambda: check_data(context))
        note_data(context)
    if any(context.will_run(stage.name) for stage in stages):
        context.console.print(f"[bold]disk[/]: {context.store.free_space} free in {context.store.root}")


def plan_stages(context: Context, stages: Sequence[Stage]) -> None:
    """Gives stages their artefacts, and checks that what they need will be there."""
    asked = set(context.cfg.rerun)
    for stage in stages:
        if stage.wanted(context) and (stage.name != EvaluateStage.name or wants_scores(context)):
            context.artefacts[stage.name] = stage.artefact(context)
            check_complete(context, stage)
            if stage.name in asked or context.rerun & set(stage.required(context)):
                context.rerun.add(stage.name)
    begin_rerun(context)
    for stage in stages:
        check_inputs(context, stage)


def begin_rerun(context: Context) -> None:
    """Makes the folders in which stages are computed again; where there are some, an earlier call goes on.

    So the same command after a kill does not begin again with what it had already replaced.
    """
    chosen = context.rerun & set(context.cfg.run)
    folders = {name: context.artefacts[name].replacement().folder for name in chosen}
    begun = {name for name, folder in folders.items() if folder.is_dir()}
    if begun:
        context.rerun -= chosen - begun
        return
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)  # processes that start together all come here


def check_segmenters(context: Context, stages: Sequence[Stage]) -> None:
    """Checks the segmenters that the run trains or tests."""
    run = set(context.cfg.run)
    chosen = (s for s in stages if isinstance(s, SegmenterStage | SegmenterTestStage) and s.name in run)
    for source in dict.fromkeys(stage.source for stage in chosen):
        check_segmenter(context, source)
    if segmenter_name(FULL) in run:
        context.on_first(lambda: check_truth(context))


def check_complete(context: Context, stage: Stage) -> None:
    """Takes the manifest off a finished artefact that has lost files: the stage will then make them again."""
    artefact = context.artefacts[stage.name]
    if context.agree(artefact.finished and not stage.complete(context, artefact)):
        context.console.print(f"[bold]{stage.name}[/]: files are gone from {artefact.folder}; not finished")
        context.on_first(lambda: (artefact.folder / MANIFEST).unlink(missing_ok=True))


def check_inputs(context: Context, stage: Stage) -> None:
    """Whether what a chosen stage needs is in the store, or will be made before it."""
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
    """Whether localization maps are evaluated, or there are some whose evaluation can be reported."""
    if EvaluateStage.name in context.cfg.run:
        return True
    return bool(context.data.eval_splits) and REPORT in context.cfg.run and bool(ready_sources(context))
