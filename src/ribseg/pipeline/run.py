"""Running the chosen stages, each at most once for the same settings, inputs and data."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf

from ribseg.errors import ConfigError
from ribseg.files import atomic_write, write_json
from ribseg.pipeline.plan import REPORT, planned, stages_of
from ribseg.pipeline.preflight import preflight
from ribseg.pipeline.recipe.console import log_file, quiet_lightning
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.loggers import finish_loggers
from ribseg.pipeline.recipe.methods import entries, map_sources
from ribseg.pipeline.recipe.processes import is_first_process, separate_processes, termination_as_interrupt
from ribseg.pipeline.recipe.usage import Usage
from ribseg.pipeline.report.check_data import report_data
from ribseg.pipeline.report.finished import CONFIG
from ribseg.pipeline.report.log_results import log_results
from ribseg.pipeline.report.page import write_report
from ribseg.pipeline.report.tables import print_tables, write_tables
from ribseg.pipeline.stages.bottleneck import RESULT as BOTTLENECK
from ribseg.pipeline.stages.evaluate import RESULT
from ribseg.pipeline.stages.scored_masks import SCORES
from ribseg.pipeline.stages.segmenter_scores import segmenter_results
from ribseg.progress import shared_console
from ribseg.store.artefact import Artefact, environment
from ribseg.store.digest import plain
from ribseg.store.shards import leave_to_last_call
from ribseg.store.stage import Stage

T = TypeVar("T")


def run(cfg: DictConfig, output: str | Path) -> dict[str, Any]:
    """Runs the stages in `cfg.run` and returns the content of `results.json`.

    Args:
        cfg: the composed configuration, see `conf/`.
        output: folder for `results.json`, `report.html`, pictures and `log.txt`.

    Raises:
        RibsegError: settings or data cannot work; raised before the first stage, if it can be known.
    """
    plan, checks_data = planned(cfg)
    quiet_lightning()
    torch.backends.cudnn.allow_tf32 = bool(plan.tf32)
    with termination_as_interrupt(), separate_processes(), log_file(Path(output), is_first_process()):
        context = Context(plan, Path(output))
        # As Hydra does for commands; `ribseg report` reads it.
        context.on_first(lambda: atomic_write(Path(output, CONFIG), OmegaConf.to_yaml(cfg).encode()))
        with shared_console(context.console):
            return run_stages(context, checks_data)


def run_stages(context: Context, checks_data: bool) -> dict[str, Any]:
    """Runs the stages of a planned configuration and returns the content of `results.json`.

    Args:
        context: of the run.
        checks_data: whether the run includes `check_data`.
    """
    reported: dict[str, Any] = {}
    if checks_data:
        context.on_first(lambda: reported.update(report_data(context)["data"]))
        if not context.cfg.run:
            return {}
    stages = stages_of(context.cfg)
    data_facts = preflight(context, stages, reported)
    if context.shard is not None:
        leave_to_last_call(context, stages)
    for stage in stages:
        run_stage(context, stage)
    results = gather(context, data_facts)
    if context.is_first:
        publish(context, results)
    return results


def publish(context: Context, results: dict[str, Any]) -> None:
    """Writes `results.json`, tables and report, prints the tables, and logs all of it."""
    write_json(context.output / "results.json", results)
    write_tables(context, results)
    print_tables(context, results)
    if REPORT in context.cfg.run:
        context.console.say(str(write_report(context, results)), "report")
    log_results(context, results)  # last, as the report is part of it


def objective(results: Mapping[str, Any], path: str | None) -> float | None:
    """The number at a path in the results, as "localization.rib.split.val.miou_at_fixed".

    Args:
        results: what `run` returns.
        path: keys and list indices, joined by dots; None returns None.

    Raises:
        ConfigError: there is no number at the path; lists the keys that exist.
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
    """Runs a chosen stage unless its result is in the store, or another run is about to put it there."""
    if stage.name not in context.cfg.run or in_store(context, stage):
        return
    context.running, part = stage.name, context.makes_part(stage)
    with context.locked(context.artefacts[stage.name], part):
        context.note_rerun(stage.name)
        if not in_store(context, stage):
            (compute_part if part else compute_stage)(context, stage)


def in_store(context: Context, stage: Stage) -> bool:
    """Whether the store has the result of a stage, which is said then."""
    artefact = context.artefacts[stage.name]
    ready = context.agree(context.is_ready(stage.name))
    if ready:
        made_by = f" (computed by {artefact.other_versions})" if artefact.other_versions else ""
        context.console.say(f"in the store, {artefact.folder}{made_by}", stage.name)
    return ready


def compute_stage(context: Context, stage: Stage) -> None:
    """Computes the result of a stage; an old one is kept until it is replaced."""
    artefact = context.artefacts[stage.name]
    again = context.agree(stage.name in context.rerun or artefact.complete)
    target = artefact.replacement() if again else artefact
    why = ", again" + "".join(f", as {name} was" for name in artefact.outdated_by) if again else ""
    context.console.say(str(artefact.folder), f"{stage.name}{why}")
    facts = measured(context, lambda: stage.work(context, target))
    line = context.usage.line(stage.name, artefact.folder)
    context.finish(stage.name, facts, again)
    context.console.say(f"  {line}")


def compute_part(context: Context, stage: Stage) -> None:
    """Computes the images of the run's shard; the call without `shard` finishes the stage."""
    artefact = context.artefacts[stage.name]
    context.console.say(f"{artefact.folder}, shard {context.shard}", stage.name)
    measured(context, lambda: stage.work(context, artefact))
    context.console.say(f"  {context.usage.line(stage.name, artefact.folder)}")


def measured(context: Context, work: Callable[[], T]) -> T:
    """What the work of a stage returns; `context.usage` counts what it costs."""
    context.usage = Usage()
    try:
        return work()
    finally:
        finish_loggers()


def gather(context: Context, data_facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The measurements by stage, as in `results.json`, with the artefacts and the environment.

    Args:
        context: of the run.
        data_facts: what `preflight` returned.
    """
    finished = {name: artefact for name, artefact in context.artefacts.items() if context.is_ready(name)}
    results: dict[str, Any] = {"name": context.cfg.name, "seed": context.cfg.seed}
    if context.preparation:
        results["prepared"] = context.preparation  # COCO's policy belongs to every number
    if data_facts:
        results["data"] = data_facts
    results |= stage_results(context, finished)
    results["store"] = {name: str(artefact.folder) for name, artefact in finished.items()}
    results["environment"] = environment()
    return results


def stage_results(context: Context, finished: Mapping[str, Artefact]) -> dict[str, Any]:
    """The parts of `results.json` that the finished stages give."""
    facts = {name: finished[name].facts for name in ("classifier", "rib", "export") if name in finished}
    methods = {
        name: finished[name].facts | {"label": entry.label, "peak_gib": finished[name].peak_gib}
        for name, entry in entries(context.cfg).items()
        if name in finished
    }
    parts = {
        "classifier": facts.get("classifier"),
        "localization": localization_results(context, finished.get("evaluate")),
        "methods": methods or None,
        "adaptation": facts.get("rib"),
        "pseudo_masks": pseudo_mask_results(finished.get("pseudo_masks")),
        "segmenter": segmenter_results(context) or None,
        "export": facts.get("export"),
        "skipped": context.skipped if any(context.skipped.values()) else None,
        "bottleneck": read_json(finished.get("bottleneck"), BOTTLENECK),
    }
    return {name: part for name, part in parts.items() if part is not None}


def read_json(artefact: Artefact | None, name: str) -> dict[str, Any] | None:
    """The content of a JSON file of an artefact; None without an artefact."""
    return None if artefact is None else json.loads((artefact.folder / name).read_text())


def localization_results(context: Context, artefact: Artefact | None) -> dict[str, Any] | None:
    """The scores of all sources of maps, with their labels in tables; None without an evaluation."""
    scores = read_json(artefact, RESULT)
    if scores is None:
        return None
    sources = map_sources(context.cfg)
    named = {name: {"label": sources[name].label, "control": sources[name].control} for name in scores}
    for split, published in (plain(context.cfg.report.published) or {}).items():
        for name, miou in published.items():
            if split in scores.get(name, {}).get("split", {}):
                scores[name]["split"][split]["published"] = miou
    return {name: scores[name] | named[name] for name in sources if name in scores}


def pseudo_mask_results(artefact: Artefact | None) -> dict[str, Any] | None:
    """The scores of all variants, and on top those of the last one on the first split; None without masks."""
    scores = read_json(artefact, SCORES)
    if scores is None:
        return None
    variant = list(scores)[-1]
    first = next((value for value in scores[variant].values() if isinstance(value, dict)), {})
    headline = {key: first[key] for key in ("miou", "iou") if key in first}
    return headline | {"variant": variant, "variants": scores}
