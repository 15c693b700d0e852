"""Runs the chosen stages one after the other, each at most once for the same settings and inputs."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ribseg.data.io.files import atomic_write
from ribseg.errors import ConfigError
from ribseg.pipeline.engine.console import quiet_lightning
from ribseg.pipeline.engine.context import Context, separate_processes
from ribseg.pipeline.engine.loggers import finish_loggers, log_results
from ribseg.pipeline.engine.methods import entries, map_sources
from ribseg.pipeline.engine.plan import REPORT, planned_stages, rerun_stages, stages_of
from ribseg.pipeline.engine.preflight import preflight
from ribseg.pipeline.engine.stage import Stage
from ribseg.pipeline.engine.store import Artefact, environment
from ribseg.pipeline.report.check_data import CHECK_DATA, report_data
from ribseg.pipeline.report.page import write_report
from ribseg.pipeline.report.tables import print_tables
from ribseg.pipeline.stages.bottleneck import RESULT as BOTTLENECK
from ribseg.pipeline.stages.evaluate import RESULT
from ribseg.pipeline.stages.pseudo_masks import SCORES
from ribseg.pipeline.stages.segmenter_scores import segmenter_results


def run(cfg: DictConfig, output: str | Path) -> dict[str, Any]:
    """Runs the stages in `cfg.run` and returns what `results.json` holds.

    Args:
        cfg: the composed configuration, see `conf/`.
        output: folder for `results.json`, `report.html` and pictures.

    Raises:
        RibsegError: settings or data cannot work; said before anything long begins.
    """
    cfg.run = planned_stages(cfg)
    cfg.rerun = rerun_stages(cfg)
    quiet_lightning()
    torch.backends.cudnn.allow_tf32 = bool(cfg.tf32)
    with separate_processes():
        context = Context(cfg, Path(output))
        if CHECK_DATA in cfg.run:
            context.on_first(lambda: report_data(context))
            cfg.run = [name for name in cfg.run if name != CHECK_DATA]
            if not cfg.run:
                return {}
        stages = stages_of(cfg)
        preflight(context, stages)
        for stage in stages:
            run_stage(context, stage)
        results = gather(context)
        if context.is_first:
            atomic_write(context.output / "results.json", json.dumps(results, indent=1).encode())
            print_tables(context, results)
            log_results(context, results)
            if REPORT in cfg.run:
                context.console.print(f"report: {write_report(context, results)}")
        return results


def objective(results: Mapping[str, Any], path: str | None) -> float | None:
    """The number at a path into `results.json`, as "localization.rib.split.val.miou_at_fixed".

    Args:
        results: what `run` returns.
        path: names and places in lists, joined by dots; None returns None.

    Raises:
        ConfigError: there is no number; names what there is.
    """
    if path is None:
        return None
    value: Any = results
    for number, name in enumerate(path.split(".")):
        there = dict(enumerate(value)) if isinstance(value, list) else value
        key = int(name) if isinstance(value, list) and name.isdigit() else name
        if not isinstance(there, Mapping) or key not in there:
            known = ", ".join(map(str, there)) if isinstance(there, Mapping) else f"the value {value!r}"
            begin = ".".join(path.split(".")[:number]) or "results.json"
            raise ConfigError(f"objective={path}: {begin} has no {name!r}; there is {known}")
        value = there[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"objective={path}: expected a number in results.json, found {type(value).__name__}"
        )
    return float(value)


def run_stage(context: Context, stage: Stage) -> None:
    """Runs a chosen stage unless its result is in the store; a result that is replaced stays until then."""
    if stage.name not in context.cfg.run:
        return
    artefact = context.artefacts[stage.name]
    if context.agree(context.is_ready(stage.name)):
        made_by = f" (computed by {artefact.other_versions})" if artefact.other_versions else ""
        context.console.print(f"[bold]{stage.name}[/]: in the store, {artefact.folder}{made_by}")
        return
    again = context.agree(stage.name in context.rerun or artefact.complete)
    target = artefact.replacement() if again else artefact
    why = ", again" + "".join(f", as {name} was" for name in artefact.outdated_by) if again else ""
    context.console.print(f"[bold]{stage.name}[/]{why}: {artefact.folder}")
    start = time.perf_counter()
    try:
        facts = stage.work(context, target)
    finally:
        finish_loggers()
    seconds = time.perf_counter() - start
    context.on_first(lambda: (artefact.replace if again else artefact.finish)(facts, seconds))
    context.rerun.discard(stage.name)
    context.console.print(f"  {seconds:.0f} s")


def gather(context: Context) -> dict[str, Any]:
    """What was measured, by stage, with where it lies and what computed it."""
    finished = {name: artefact for name, artefact in context.artefacts.items() if context.is_ready(name)}
    results: dict[str, Any] = {"name": context.cfg.name, "seed": context.cfg.seed}
    if context.preparation:
        # COCO's policy belongs to every number: what was set, and what the preset made of it.
        results["prepared"] = context.preparation
    if context.data_facts:
        results["data"] = context.data_facts
    if "classifier" in finished:
        results["classifier"] = finished["classifier"].facts
    if "evaluate" in finished:
        results["localization"] = localization_results(context, finished["evaluate"])
    methods = {name: entry for name, entry in entries(context.cfg).items() if name in finished}
    if methods:
        results["methods"] = {n: finished[n].facts | {"label": entry.label} for n, entry in methods.items()}
    if "rib" in methods:
        results["adaptation"] = finished["rib"].facts
    if "pseudo_masks" in finished:
        results["pseudo_masks"] = pseudo_mask_results(finished["pseudo_masks"])
    segmenters = segmenter_results(context)
    if segmenters:
        results["segmenter"] = segmenters
    if "export" in finished:
        results["export"] = finished["export"].facts
    if any(context.skipped.values()):
        results["skipped"] = context.skipped
    if "bottleneck" in finished:
        results["bottleneck"] = json.loads((finished["bottleneck"].folder / BOTTLENECK).read_text())
    results["store"] = {name: str(artefact.folder) for name, artefact in finished.items()}
    results["environment"] = environment()
    return results


def localization_results(context: Context, artefact: Artefact) -> dict[str, Any]:
    """Scores of all sources of maps, with what tables call them."""
    scores, sources = json.loads((artefact.folder / RESULT).read_text()), map_sources(context.cfg)
    named = {name: {"label": sources[name].label, "control": sources[name].control} for name in scores}
    return {name: scores[name] | named[name] for name in sources if name in scores}


def pseudo_mask_results(artefact: Artefact) -> dict[str, Any]:
    """Scores of all variants; those of the last one, on the first split, stand one level up."""
    scores = json.loads((artefact.folder / SCORES).read_text())
    variant = list(scores)[-1]
    first = next((value for value in scores[variant].values() if isinstance(value, dict)), {})
    headline = {key: first[key] for key in ("miou", "iou") if key in first}
    return headline | {"variant": variant, "variants": scores}
