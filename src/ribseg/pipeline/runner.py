"""Runs the chosen stages one after the other, each at most once for the same settings and inputs."""

import json
import logging
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ribseg.data.files import atomic_write
from ribseg.errors import ConfigError
from ribseg.models import IRNet
from ribseg.pipeline.affinity import AffinityLabelsStage, AffinityStage, RandomWalkStage, new_irnet
from ribseg.pipeline.context import Context, build, separate_processes
from ribseg.pipeline.evaluate import RESULT, EvaluateStage
from ribseg.pipeline.loggers import finish_loggers, log_results
from ribseg.pipeline.pseudo_masks import SCORES, PseudoMasksStage, variants
from ribseg.pipeline.report import print_tables, write_report
from ribseg.pipeline.stages import (
    CAMStage,
    ClassifierStage,
    FeatureNormStage,
    RIBStage,
    Stage,
    WrongClassStage,
    new_classifier,
    rib_builder,
)
from ribseg.pipeline.store import Artefact, environment

# In the order in which they run: each stands after what it needs.
STAGES: tuple[Stage, ...] = (
    ClassifierStage(),
    CAMStage(),
    RIBStage(),
    WrongClassStage(),
    FeatureNormStage(),
    AffinityLabelsStage(),
    AffinityStage(),
    RandomWalkStage(),
    PseudoMasksStage(),
    EvaluateStage(),
)
ALIASES = {
    "controls": ("wrong_class", "feature_norm"),
    "refine": ("affinity_labels", "affinity", "random_walk", "pseudo_masks"),
}
REPORT = "report"


def run(cfg: DictConfig, output: str | Path) -> dict[str, Any]:
    """Runs the stages in `cfg.run` and returns what `results.json` holds.

    Args:
        cfg: the composed configuration, see `conf/`.
        output: folder for `results.json`, `report.html` and pictures.

    Raises:
        RibsegError: settings or data cannot work; said before anything long begins.
    """
    cfg.run = chosen_stages(cfg.run)
    quiet_lightning()
    with separate_processes():
        context = Context(cfg, Path(output))
        preflight(context)
        for stage in STAGES:
            run_stage(context, stage)
        results = gather(context)
        if context.is_first:
            atomic_write(context.output / "results.json", json.dumps(results, indent=1).encode())
            print_tables(context, results)
            log_results(context, results)
            if REPORT in cfg.run:
                context.console.print(f"report: {write_report(context, results)}")
        return results


def quiet_lightning() -> None:
    """Leaves out what Lightning says at every start of a Trainer; its warnings stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    # Frozen BatchNorm statistics are meant.
    warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training")
    # Lightning 2.6 with torch >= 2.12; of no use to whoever runs a stage.
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)


def chosen_stages(names: list[str]) -> list[str]:
    """Expands "controls" and checks the names of stages.

    Raises:
        ConfigError: an unknown name, or none at all.
    """
    known = [*(stage.name for stage in STAGES), REPORT]
    chosen = [name for given in names for name in ALIASES.get(given, (given,))]
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ConfigError(
            f"expected run=[...] with some of {', '.join([*known, *ALIASES])}; "
            f"got {', '.join(unknown) or 'nothing'}"
        )
    return chosen


def preflight(context: Context) -> None:
    """Finds in seconds what would otherwise fail after hours."""
    cfg = context.cfg
    if "evaluate" in cfg.run and not context.data.eval_splits:
        raise ConfigError(
            "run=[..., evaluate] needs data.eval_splits=[...] with masks; leave evaluate out without"
        )
    if cfg.rib.lr == "auto" and cfg.rib.margin is None and cfg.rib.area_limit is None:
        raise ConfigError("rib.lr=auto goes by the stop rules; give rib.margin or rib.area_limit a number")
    if max(cfg.rib.loss_views, default=0) >= len(cfg.data.scales):
        raise ConfigError(
            f"rib.loss_views={cfg.rib.loss_views} names a view that data.scales={cfg.data.scales} lacks"
        )
    context.data.setup()
    context.on_first(lambda: check_data(context))
    # Builds what the stages will build, so that a wrong option is not met after the training.
    classifier = new_classifier(context)
    build(cfg.classifier.module, classifier=classifier)
    rib_builder(context, classifier)(**({"lr": 1.0} if cfg.rib.lr == "auto" else {}))
    if set(ALIASES["refine"]) & set(cfg.run):
        variants(context)
    if "affinity" in cfg.run:
        own = cfg.affinity.backbone.weights != "classifier"
        network = new_irnet(context) if own else IRNet(classifier.backbone)
        build(cfg.affinity.module, network=network)
        if cfg.affinity.crop_size < 8 * cfg.affinity.module.radius:
            raise ConfigError(
                f"expected affinity.crop_size of at least 8 * affinity.module.radius = "
                f"{8 * cfg.affinity.module.radius} pixels, got {cfg.affinity.crop_size}"
            )
    for stage in STAGES:
        if stage.name != EvaluateStage.name or wants_scores(cfg):
            context.artefacts[stage.name] = stage.artefact(context)
    for stage in STAGES:
        if stage.name not in cfg.run:
            continue
        required = stage.required(context)
        absent = [n for n in required if n not in cfg.run and not context.artefacts[n].finished]
        if absent:
            raise ConfigError(
                f"stage {stage.name} needs {', '.join(absent)}, which the store {context.store.root} does "
                f"not hold for these settings; run=[{','.join([*absent, *cfg.run])}] makes it"
            )


def wants_scores(cfg: DictConfig) -> bool:
    """Whether localization maps are evaluated, or an evaluation is reported."""
    return bool(cfg.data.eval_splits) and bool({EvaluateStage.name, REPORT} & set(cfg.run))


def check_data(context: Context) -> None:
    """Opens every file once; what was found good is remembered in the store."""
    scores = EvaluateStage.name in context.cfg.run
    settings = {"masks": scores, "full": context.cfg.check_files}
    artefact = context.store.artefact("data", settings, {}, context.data.fingerprint(masks=scores))
    if artefact.finished:
        return
    context.console.print("[bold]data[/]: checking all files")
    start = time.perf_counter()
    reports = context.data.check(context.cfg.check_files, scores, progress=context.cfg.progress)
    artefact.finish({split: asdict(report) for split, report in reports.items()}, time.perf_counter() - start)


def run_stage(context: Context, stage: Stage) -> None:
    """Runs a chosen stage unless its result is in the store."""
    if stage.name not in context.cfg.run:
        return
    artefact = context.artefacts[stage.name]
    if context.agree(artefact.finished):
        context.console.print(f"[bold]{stage.name}[/]: in the store, {artefact.folder}")
        return
    context.console.print(f"[bold]{stage.name}[/]: {artefact.folder}")
    start = time.perf_counter()
    try:
        facts = stage.work(context, artefact)
    finally:
        finish_loggers()
    seconds = time.perf_counter() - start
    context.on_first(lambda: artefact.finish(facts, seconds))
    context.console.print(f"  {seconds:.0f} s")


def gather(context: Context) -> dict[str, Any]:
    """What was measured, by stage, with where it lies and what computed it."""
    finished = {name: artefact for name, artefact in context.artefacts.items() if artefact.finished}
    results: dict[str, Any] = {"name": context.cfg.name, "seed": context.cfg.seed}
    if "classifier" in finished:
        results["classifier"] = finished["classifier"].facts
    if "evaluate" in finished:
        results["localization"] = json.loads((finished["evaluate"].folder / RESULT).read_text())
    if "rib" in finished:
        results["adaptation"] = finished["rib"].facts
    if "pseudo_masks" in finished:
        results["pseudo_masks"] = pseudo_mask_results(finished["pseudo_masks"])
    results["store"] = {name: str(artefact.folder) for name, artefact in finished.items()}
    results["environment"] = environment()
    return results


def pseudo_mask_results(artefact: Artefact) -> dict[str, Any]:
    """Scores of all variants; those of the last one, on the first split, stand one level up."""
    scores = json.loads((artefact.folder / SCORES).read_text())
    variant = list(scores)[-1]
    first = next((value for value in scores[variant].values() if isinstance(value, dict)), {})
    headline = {key: first[key] for key in ("miou", "iou") if key in first}
    return headline | {"variant": variant, "variants": scores}
