"""Whether a run can work: known in seconds, before anything long begins."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import get_args

from omegaconf import DictConfig, OmegaConf

from ribseg.checks import within
from ribseg.data.augment.seeding import share_of
from ribseg.data.check.dataset import check_dataset
from ribseg.data.check.mask_facts import MaskFacts
from ribseg.errors import ConfigError, DataError
from ribseg.functional.dense_crf import check_dense_crf
from ribseg.functional.pixel_adaptive import check_pixel_adaptive
from ribseg.methods.inference import check_inference
from ribseg.methods.refine import check_confidence, check_walk
from ribseg.methods.trial import check_network
from ribseg.models import Classifier
from ribseg.modules import ClassifierModule, WrongClassModule
from ribseg.pipeline.engine.context import Context, build, check_trainer, plain
from ribseg.pipeline.engine.numerics import check_normalization, check_precision
from ribseg.pipeline.engine.parts import (
    check_arguments,
    check_optimizer,
    check_targets,
    check_training,
)
from ribseg.pipeline.engine.plan import ALIASES, CHAINS, REPORT, STAGES, check_sources
from ribseg.pipeline.engine.settings import check_ranges
from ribseg.pipeline.engine.store import MANIFEST, Artefact
from ribseg.pipeline.report.data_notes import data_results, nothing_to_learn, print_notes
from ribseg.pipeline.report.mask_notes import unusable_masks
from ribseg.pipeline.stages.affinity import backbone_weights, new_network, new_training
from ribseg.pipeline.stages.bottleneck import BottleneckStage, check_bottleneck
from ribseg.pipeline.stages.chains import (
    FULL,
    REFINEMENT,
    SOURCES,
    chain_name,
    over,
    segmenter_name,
    tested_name,
)
from ribseg.pipeline.stages.evaluate import EvaluateStage, ready_sources
from ribseg.pipeline.stages.export import ExportStage, check_export
from ribseg.pipeline.stages.imported import check_imported
from ribseg.pipeline.stages.maps import (
    RIBStage,
    Stage,
    WrongClassStage,
    check_rate_search,
    given_checkpoint,
    loaded_checkpoint,
    new_classifier,
    rib_builder,
    searches_rate,
)
from ribseg.pipeline.stages.pseudo_masks import PseudoMasksStage, check_refinement
from ribseg.pipeline.stages.segmenter import check_segmenter, training_folder
from ribseg.types import Trainable


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
    check_imports(context.cfg)
    check_callbacks(context)
    _ = context.result_loggers  # made now: one that cannot be is said before anything long begins
    if reads_data(context.cfg):
        preflight_data(context)
    if BottleneckStage.name in context.cfg.run:
        check_bottleneck(context)
        plan_stages(context, [stage for stage in STAGES if not stage.reads_data])


def preflight_data(context: Context) -> None:
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
    if set(ALIASES["refine"]) & set(context.cfg.run):
        check_refinement(context)
    if ExportStage.name in context.cfg.run:
        check_export(context)
    stages = [stage for stage in STAGES if stage.reads_data]
    plan_stages(context, stages)
    check_imported(context)
    check_parts(context)
    check_segmenters(context)
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
            if stage.name in asked or context.rerun & set(context.artefacts[stage.name].inputs):
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
        folder.mkdir(parents=True)


def check_settings(cfg: DictConfig) -> None:
    """Settings out of range, or that contradict each other, as far as nothing must be built to see it."""
    check_ranges(cfg)
    check_trainer(cfg)
    check_sources([*cfg.segmenter.sources, cfg.export.source], cfg.refine.maps)
    if "evaluate" in cfg.run and not cfg.data.eval_splits:
        raise ConfigError(
            "run=[..., evaluate] needs data.eval_splits=[...] with masks; leave evaluate out without"
        )
    check_functions(cfg)


def check_functions(cfg: DictConfig) -> None:
    """The sections that hold the arguments of a function."""
    scores = {name: cfg.refine.labels[name] for name in ("foreground", "background")}
    with within("refine.labels"):
        if "auto" not in scores.values():
            check_confidence(**scores)
    sections: dict[str, Callable[..., None]] = {
        "refine.crf": check_dense_crf,
        "refine.pixel_adaptive": check_pixel_adaptive,
        "refine.walk": check_walk,
        "segmenter.test": check_inference,
    }
    for path, check in sections.items():
        with within(path):
            check_arguments(check, OmegaConf.select(cfg, path))


def check_imports(cfg: DictConfig) -> None:
    """Whether everything that a run will build can be imported."""
    used = ["trainer", "pooling", "callbacks"]
    if reads_data(cfg):
        used += ["prepare", "data", "classifier", "rib"]
    trained = {"affinity": trainings("affinity"), "segmenter": [segmenter_name(s) for s in SOURCES]}
    used += [section for section, stages in trained.items() if set(stages) & set(cfg.run)]
    used += ["bottleneck"] if BottleneckStage.name in cfg.run else []
    for section in used:
        check_targets(section, plain(cfg[section]))


def trainings(stage: str) -> list[str]:
    """A stage of the refinement and those that do the same for other maps."""
    return [stage, *(chain_name(stage, maps) for maps in CHAINS)]


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
    absent = [n for n in stage.required(context) if n not in chosen and not context.is_ready(n)]
    if absent:
        raise ConfigError(
            f"stage {stage.name} needs {', '.join(absent)}, which the store {context.store.root} does not "
            f"hold for these settings; run=[{','.join([*absent, *chosen])}] makes it"
        )


def check_parts(context: Context) -> None:
    """Builds what the stages will build, so that a wrong option is not met after the training."""
    check_precision(context.cfg)
    with within("trainer"):
        processes = context.processes  # builds a Trainer
    check_batches(context, processes)
    classifier = check_classifier(context)
    check_rib(context, classifier)
    chosen = [name for name in trainings("affinity") if name in context.cfg.run]
    if any(context.will_run(name) for name in chosen):
        check_affinity(context, classifier)


def check_batches(context: Context, processes: int) -> None:
    """Whether the batches of trainings can be shared out to the processes."""
    if context.will_run("classifier"):
        share_of(context.cfg.data.batch_size, processes, "data.batch_size")
    if any(context.will_run(name) for name in trainings("affinity") if name in context.cfg.run):
        share_of(context.cfg.affinity.batch_size, processes, "affinity.batch_size")


def check_classifier(context: Context) -> Classifier:
    """Builds the classifier and its training; returns it, with its first weights if it is to be trained."""
    cfg = context.cfg
    with within("classifier"):
        given = given_checkpoint(context)
        if given:
            classifier, left_out = loaded_checkpoint(context)
            if left_out:
                names = ", ".join(left_out)
                context.console.print(f"  the classifier is taken without {names}: maps have no bias")
    if not given:
        # Weights are looked for only if they will be needed.
        trains = context.will_run("classifier")
        with within("classifier.model"):
            classifier = new_classifier(context, pretrained=None if trains else False)
    check_normalization(classifier, cfg)
    module = check_training("classifier.module", cfg.classifier.module, classifier=classifier)
    learns = isinstance(module, ClassifierModule) and "classifier" in cfg.run and not given
    check_network(classifier, context.data.num_classes, learns, adapted_part(cfg))
    return classifier


def adapted_part(cfg: DictConfig) -> Trainable | None:
    """What RIB adapts in this run; None where it does not run, or cannot know it: building it says why."""
    given = cfg.rib.get("trainable") if {"rib", "wrong_class"} & set(cfg.run) else None
    return given if given in get_args(Trainable) else None


def check_callbacks(context: Context) -> None:
    """Builds the callbacks of every training of the run once."""
    stages = {
        "classifier": ["classifier"],
        "affinity": trainings("affinity"),
        "segmenter": [segmenter_name(source) for source in SOURCES],
        "bottleneck": ["toy_networks"],
    }
    for part, names in stages.items():
        if set(names) & set(context.cfg.run):
            with within(f"callbacks, or {part}.callbacks"):
                context.callbacks(part)


def check_rib(context: Context, classifier: Classifier) -> None:
    """Builds the pooling, the method, and the control that runs it."""
    searched = searches_rate(context)
    with within("pooling"):
        build(context.cfg.pooling)
    with within("rib"):
        module = rib_builder(context, classifier)(**({"lr": 1.0} if searched else {}))
    if searched:
        with within("rate_search"):
            check_rate_search(context, module)
    if WrongClassStage.name in context.cfg.run:
        WrongClassModule(module, context.cfg.seed)


def check_affinity(context: Context, classifier: Classifier) -> None:
    """Builds the network of the affinities and its training."""
    shared = backbone_weights(context) == "classifier"
    with within("affinity.network"):
        network = new_network(context, classifier.backbone if shared else None)
    with within("affinity.module"):
        module = new_training(context, network)
    with within("affinity.module.optimizer"):
        check_optimizer(module, context.cfg.affinity.module)


def wants_scores(context: Context) -> bool:
    """Whether localization maps are evaluated, or there are some whose evaluation can be reported."""
    if EvaluateStage.name in context.cfg.run:
        return True
    return bool(context.data.eval_splits) and REPORT in context.cfg.run and bool(ready_sources(context))
