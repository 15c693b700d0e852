"""Whether a run can work: known in seconds, before anything long begins."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from omegaconf import DictConfig

from ribseg.data.check import check_dataset
from ribseg.data.mask_facts import MaskFacts
from ribseg.errors import ConfigError, DataError
from ribseg.pipeline.affinity import new_network
from ribseg.pipeline.bottleneck import BottleneckStage, check_bottleneck
from ribseg.pipeline.chains import (
    FULL,
    REFINEMENT,
    SOURCES,
    chain_name,
    over,
    segmenter_name,
    tested_name,
)
from ribseg.pipeline.context import Context, build, plain
from ribseg.pipeline.data_notes import data_results, nothing_to_learn, print_notes
from ribseg.pipeline.disk import check_space, weights_of
from ribseg.pipeline.evaluate import EvaluateStage, ready_sources
from ribseg.pipeline.export import ExportStage, check_export
from ribseg.pipeline.imported import check_imported
from ribseg.pipeline.mask_notes import unusable_masks
from ribseg.pipeline.numbers import check_numbers
from ribseg.pipeline.plan import ALIASES, CHAINS, REPORT, STAGES, check_sources
from ribseg.pipeline.pseudo_masks import PseudoMasksStage, check_refinement
from ribseg.pipeline.segmenter import check_segmenter, training_folder
from ribseg.pipeline.stages import (
    RIBStage,
    Stage,
    new_classifier,
    rib_builder,
    trained_classifier,
)
from ribseg.pipeline.store import MANIFEST, Artefact


def reads_data(cfg: DictConfig) -> bool:
    """Whether a chosen stage reads the data set; a report alone is one of the stages that do."""
    alone = {stage.name for stage in STAGES if not stage.reads_data}
    chosen = set(cfg.run) - {REPORT}
    return not chosen or bool(chosen - alone)


def preflight(context: Context) -> None:
    """Finds in seconds what would otherwise fail after hours, and gives every stage its artefact.

    Raises:
        RibsegError: settings, data or store cannot work.
    """
    check_settings(context.cfg)
    if reads_data(context.cfg):
        preflight_data(context)
    if BottleneckStage.name in context.cfg.run:
        check_bottleneck(context)
        plan_stages(context, [stage for stage in STAGES if not stage.reads_data])


def preflight_data(context: Context) -> None:
    """The part of `preflight` for the stages that read the data set."""
    context.data.setup()
    if not context.data.train.labels.any():
        raise DataError(nothing_to_learn(context.data.train, str(context.cfg.data.labels)))
    context.on_first(lambda: check_data(context))
    drop_skipped(context)
    note_data(context)
    if set(ALIASES["refine"]) & set(context.cfg.run):
        check_refinement(context)
    if ExportStage.name in context.cfg.run:
        check_export(context)
    stages = [stage for stage in STAGES if stage.reads_data]
    plan_stages(context, stages)
    check_imported(context)
    check_parts(context)
    check_segmenters(context)
    context.on_first(lambda: check_space(context, stages))


def plan_stages(context: Context, stages: Sequence[Stage]) -> None:
    """Gives stages their artefacts, and checks that what they need will be there."""
    for stage in stages:
        if stage.wanted(context) and (stage.name != EvaluateStage.name or wants_scores(context)):
            context.artefacts[stage.name] = stage.artefact(context)
            check_complete(context, stage)
    for stage in stages:
        check_inputs(context, stage)


def check_settings(cfg: DictConfig) -> None:
    """Settings out of range, or that contradict each other."""
    check_numbers(cfg)
    check_sources([*cfg.segmenter.sources, cfg.export.source], cfg.refine.maps)
    views = plain(cfg.rib.loss_views)
    if not isinstance(views, list) or not all(isinstance(view, int) and view >= 0 for view in views):
        raise ConfigError(f"expected rib.loss_views as a list of places in data.scales, got {views!r}")
    if "evaluate" in cfg.run and not cfg.data.eval_splits:
        raise ConfigError(
            "run=[..., evaluate] needs data.eval_splits=[...] with masks; leave evaluate out without"
        )
    if cfg.rib.lr == "auto" and cfg.rib.margin is None and cfg.rib.area_limit is None:
        raise ConfigError("rib.lr=auto goes by the stop rules; give rib.margin or rib.area_limit a number")
    if max(views, default=0) >= len(cfg.data.scales):
        raise ConfigError(f"rib.loss_views={views} names a view that data.scales={cfg.data.scales} lacks")


def check_segmenters(context: Context) -> None:
    """Checks the segmenters that the run trains, and the masks that it makes for them."""
    run = set(context.cfg.run)
    for source in SOURCES:
        if {segmenter_name(source), tested_name(source)} & run:
            check_segmenter(context, source)
    if segmenter_name(FULL) in run:
        context.on_first(lambda: check_truth(context))
    for maps in CHAINS:
        if {chain_name(name, maps) for name in REFINEMENT} & run:
            check_refinement(over(context, maps))


def check_truth(context: Context) -> None:
    """Opens every mask that the bound learns from; remembered in the store."""
    folder, full = training_folder(context, FULL), context.cfg.check_files
    settings = {"masks": [folder.split], "full": full, "values": True}
    artefact = context.store.artefact("data", settings, {}, folder.fingerprint(masks=True))
    if not artefact.finished:
        start = time.perf_counter()
        report = check_dataset(folder, masks=True, full=full, progress=context.cfg.progress)
        artefact.finish({folder.split: asdict(report)}, time.perf_counter() - start)
    refuse_unusable(context, mask_values(artefact))


def mask_values(artefact: Artefact) -> dict[str, MaskFacts]:
    """Split -> what its masks hold, where the check has decoded them."""
    facts = artefact.facts if artefact.finished else {}
    return {split: MaskFacts(**one["values"]) for split, one in facts.items() if one.get("values")}


def refuse_unusable(context: Context, values: Mapping[str, MaskFacts]) -> None:
    """Raises a DataError if masks hold nothing that can be scored or learnt."""
    found = [unusable_masks(split, facts, context.data.classes) for split, facts in values.items()]
    if any(found):
        raise DataError("\n".join(filter(None, found)))


def note_data(context: Context) -> None:
    """Says what is unusual about the data, before the first stage.

    Raises:
        DataError: masks are to be scored that no score can mean anything on.
    """
    values = mask_values(data_artefact(context))
    refuse_unusable(context, values)
    said = context.data_facts
    context.data_facts = data_results(context, values, RIBStage.name in context.cfg.run)
    if context.data_facts != said:
        print_notes(context)


def check_data(context: Context) -> None:
    """Opens every file once; what was found is remembered in the store."""
    artefact = data_artefact(context)
    if artefact.finished:
        return
    context.console.print("[bold]data[/]: checking all files")
    start = time.perf_counter()
    reports = context.data.check(context.cfg.check_files, needs_masks(context), progress=context.cfg.progress)
    facts = {split: asdict(report) for split, report in reports.items()}
    artefact.finish(facts, time.perf_counter() - start)


def data_artefact(context: Context) -> Artefact:
    """Where the check of the data is remembered."""
    masks = needs_masks(context)
    settings = {
        "masks": list(context.data.eval_splits) if masks else [],
        "full": context.cfg.check_files,
        "values": True,
        "on_error": context.data.on_error,
    }
    return context.store.artefact("data", settings, {}, context.data.fingerprint(masks=masks))


def needs_masks(context: Context) -> bool:
    """Whether the masks of the evaluated splits are looked at.

    Where broken images are skipped, always if there are any: what a stage trains on must not depend on
    whether the evaluation is among the stages of this run.
    """
    run = context.cfg.run
    masks = [name for name in run if name.startswith(PseudoMasksStage.name)]  # of all chains
    if EvaluateStage.name in run or masks or any(tested_name(source) in run for source in SOURCES):
        return True
    evals = context.data.evals.values()
    return context.data.on_error == "skip" and any(folder.has_mask(i) for folder in evals for i in folder.ids)


def drop_skipped(context: Context) -> None:
    """Takes images off the lists that the check has found broken, and says so; in every process."""
    if context.data.on_error != "skip":
        return
    artefact = data_artefact(context)
    context.skipped = {split: facts["skipped"] for split, facts in artefact.facts.items()}
    for split, broken in context.skipped.items():
        if broken:
            context.console.print(
                f"[yellow]skipped[/]: {len(broken)} images of {split}; why is said in {artefact.folder}"
            )
    context.data.drop({image_id for broken in context.skipped.values() for image_id in broken})


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
    absent = [n for n in stage.required(context) if n not in chosen and not context.artefacts[n].finished]
    if absent:
        raise ConfigError(
            f"stage {stage.name} needs {', '.join(absent)}, which the store {context.store.root} does not "
            f"hold for these settings; run=[{','.join([*absent, *chosen])}] makes it"
        )


def check_parts(context: Context) -> None:
    """Builds what the stages will build, so that a wrong option is not met after the training."""
    cfg = context.cfg
    if cfg.classifier.official_checkpoint:
        classifier = trained_classifier(context)
        if classifier.num_classes != context.data.num_classes:
            raise ConfigError(
                f"{cfg.classifier.official_checkpoint} knows {classifier.num_classes} classes, but the data "
                f"has {context.data.num_classes}"
            )
    else:
        # Weights are looked for only if they will be needed.
        trains = "classifier" in cfg.run and not context.artefacts["classifier"].finished
        classifier = new_classifier(context, pretrained=None if trains else False)
    context.weights["classifier"] = weights_of(classifier)
    build(cfg.classifier.module, classifier=classifier)
    _ = context.processes  # builds a Trainer
    rib_builder(context, classifier)(**({"lr": 1.0} if cfg.rib.lr == "auto" else {}))
    trainings = ("affinity", *(chain_name("affinity", maps) for maps in CHAINS))
    if any(name in cfg.run and not context.artefacts[name].finished for name in trainings):
        shared = cfg.affinity.backbone.weights == "classifier"
        network = new_network(context, classifier.backbone if shared else None)
        context.weights["affinity"] = weights_of(network)
        build(cfg.affinity.module, network=network)


def wants_scores(context: Context) -> bool:
    """Whether localization maps are evaluated, or there are some whose evaluation can be reported."""
    if EvaluateStage.name in context.cfg.run:
        return True
    return bool(context.data.eval_splits) and REPORT in context.cfg.run and bool(ready_sources(context))
