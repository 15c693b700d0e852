"""Running the chosen stages, each at most once for the same settings, inputs and data."""

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ribseg.errors import ConfigError
from ribseg.files import atomic_write, write_json
from ribseg.pipeline.plan import KINDS, selection, stages_of
from ribseg.pipeline.recipe.build import build, check_targets, plain
from ribseg.pipeline.recipe.console import log_file, quiet_lightning
from ribseg.pipeline.recipe.loggers import finish_loggers
from ribseg.pipeline.recipe.processes import fresh_process_group, is_first_process, termination_as_interrupt
from ribseg.pipeline.recipe.session import CHECK_DATA, REPORT, Session
from ribseg.pipeline.recipe.trainer import check_precision, slow_precision
from ribseg.pipeline.report.check_data import report_data
from ribseg.pipeline.report.finished import CONFIG, RESULTS
from ribseg.pipeline.report.log_results import log_results
from ribseg.pipeline.report.page import write_report
from ribseg.pipeline.report.tables import check_own_tables, print_tables, write_tables
from ribseg.pipeline.stages.bottleneck import RESULT as BOTTLENECK
from ribseg.pipeline.stages.checked_data import CheckedData, facts_of
from ribseg.pipeline.stages.evaluate import RESULT
from ribseg.pipeline.stages.scored_masks import SCORES
from ribseg.pipeline.stages.segmenter_scores import SegmenterTestStage
from ribseg.progress import shared_console
from ribseg.store.artefact import Artefact, environment
from ribseg.store.run import Run
from ribseg.workers import refuse_unguarded


def run(cfg: DictConfig, output: str | Path) -> dict[str, Any]:
    """Runs the stages in `cfg.run` and returns the content of `results.json`.

    Args:
        cfg: the composed configuration, see `conf/`.
        output: folder for `results.json`, `report.html`, pictures and `log.txt`.

    Raises:
        RibsegError: settings or data cannot work; raised before the first stage, if it can be known.
    """
    refuse_unguarded()
    quiet_lightning()
    torch.backends.cudnn.allow_tf32 = bool(cfg.tf32)
    with termination_as_interrupt(), fresh_process_group(), log_file(Path(output), is_first_process()):
        session = Session(cfg, Path(output), KINDS)
        # As Hydra does for commands; `ribseg report` reads it.
        session.group.on_first(lambda: atomic_write(Path(output, CONFIG), OmegaConf.to_yaml(cfg).encode()))
        with shared_console(session.console):
            return run_stages(session)


def run_stages(session: Session) -> dict[str, Any]:
    """Runs the stages that `run` selects and returns the content of `results.json`."""
    reported: dict[str, Any] = {}
    if begin(session):
        session.group.on_first(lambda: reported.update(reported_data(session)["data"]))
        if not session.run.chosen:
            return {}
    facts = check(session, reported)
    session.run.compute()
    results = gather(session, facts)
    if session.group.first:
        publish(session, results)
    return results


def reported_data(session: Session) -> dict[str, Any]:
    """Reports on the data of a run, into its folder; returns the findings."""
    path = session.output / "check_data.json"
    facts, progress = partial(facts_of, session), session.progress
    return report_data(session.data, facts, session.console, path, progress, session.preparation)


def begin(session: Session) -> bool:
    """Gives a session its run, of the stages that `run` and `rerun` select; returns if the data is reported.

    Raises:
        ConfigError: a name is unknown, or settings of the engine cannot work.
    """
    stages = stages_of(session)
    chosen, again = selection(session, stages)
    session.run = Run(
        stages,
        [name for name in chosen if name != CHECK_DATA],
        again,
        shard=session.shard,
        group=session.group,
        engine=build(session.cfg.engine),
        say=session.say,
        usage=session.usage,
        close=finish_loggers,
    )
    return CHECK_DATA in chosen


def check(session: Session, reported: Mapping[str, Any]) -> Mapping[str, Any]:
    """Checks in seconds what would otherwise fail after hours, and plans the artefacts of all stages.

    Args:
        session: of the run.
        reported: data facts whose notes have been printed already.

    Returns:
        The data facts, "data" in `results.json`; empty if no stage reads the data set.

    Raises:
        RibsegError: settings, data or store cannot work.
    """
    run, data = session.run, None
    reading = [stage for stage in run.stages if stage.reads_data]
    others = [stage for stage in run.stages if not stage.reads_data]
    check_imports(session)
    check_precisions(session)
    check_own_tables(session)
    _ = session.result_loggers  # built now, so that a logger that cannot be built ends the run at once
    if reads_data(session):
        data = CheckedData(session, reported)
        # Skipped images change the digests of all results: then the files are checked first. Otherwise last,
        # because that takes long and a wrong setting should be reported at once.
        if data.skips:
            data.check_files()
        data.note()
        run.plan(reading)
    run.plan(others)
    run.check()
    if data is not None and not data.skips:
        data.check_files()
        data.note()
    if any(run.computes(stage) for stage in run.planned.values()):
        root = session.store.root
        session.say(f"{shutil.disk_usage(root).free / 1e9:.1f} GB free in {root}", "disk")
    return {} if data is None else data.facts


def reads_data(session: Session) -> bool:
    """Whether a chosen stage reads the data set; a run of the report alone counts as such."""
    alone = {stage.name for stage in session.run.stages if not stage.reads_data}
    chosen = set(session.run.chosen) - {REPORT}
    return not chosen or bool(chosen - alone)


def check_imports(session: Session) -> None:
    """Imports all that the chosen stages will build."""
    chosen = session.run.chosen
    sections = ["trainer", "pooling", "callbacks", *(["prepare", "data"] if reads_data(session) else [])]
    sections += [name for stage in session.run.stages if stage.name in chosen for name in stage.sections]
    for section in dict.fromkeys(sections):
        check_targets(section, plain(session.cfg[section]))
    for entry in session.entries.values():
        if entry.maps_of is not None or entry.name in chosen:
            check_targets(entry.path, entry.node)


def check_precisions(session: Session) -> None:
    """Builds a Trainer; checks the precision of the trainings."""
    on_gpu = session.hardware.strategy.root_device.type == "cuda"
    for section in ("trainer", "segmenter"):
        name, value = f"{section}.precision", session.cfg[section].get("precision")
        if section == "trainer" or value is not None:
            check_precision(name, value, on_gpu)
            if warning := slow_precision(name, value, on_gpu):
                session.warn(warning)


def publish(session: Session, results: dict[str, Any]) -> None:
    """Writes `results.json`, tables and report, prints the tables, and logs all of it."""
    write_json(session.output / RESULTS, results)
    write_tables(session, results)
    print_tables(session, results)
    if REPORT in session.run.chosen:
        session.say(str(write_report(session, results)), "report")
    log_results(session, results)  # last, as the report is part of it


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
            begin = ".".join(path.split(".")[:number]) or RESULTS
            raise ConfigError(f"objective={path}: {begin} has no {name!r}; there is {known}")
        value = there[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"objective={path}: expected a number in results.json, found {type(value).__name__}"
        )
    return float(value)


def gather(session: Session, data_facts: Mapping[str, Any]) -> dict[str, Any]:
    """The measurements by stage, as in `results.json`, with the artefacts and the environment.

    Args:
        session: of the run.
        data_facts: what `check` returned.
    """
    finished = {name: s for name, s in session.run.planned.items() if session.run.is_ready(s)}
    artefacts = {name: stage.artefact for name, stage in finished.items()}
    facts = {name: artefacts[name].facts for name in ("classifier", "rib", "export") if name in artefacts}
    methods = {
        name: artefacts[name].facts | {"label": entry.label, "peak_gib": artefacts[name].peak_gib}
        for name, entry in session.entries.items()
        if name in artefacts
    }
    tests = [stage for stage in finished.values() if isinstance(stage, SegmenterTestStage)]
    parts = {
        "prepared": session.preparation or None,  # COCO's policy belongs to every number
        "data": data_facts or None,
        "classifier": facts.get("classifier"),
        "localization": localization_results(session, artefacts.get("evaluate")),
        "methods": methods or None,
        "adaptation": facts.get("rib"),
        "pseudo_masks": pseudo_mask_results(artefacts.get("pseudo_masks")),
        "segmenter": {stage.source: stage.results() for stage in tests} or None,
        "export": facts.get("export"),
        "skipped": session.skipped if any(session.skipped.values()) else None,
        "bottleneck": read_json(artefacts.get("bottleneck"), BOTTLENECK),
    }
    return {
        "name": session.cfg.name,
        "directory": str(Path.cwd()),  # of relative paths in the configuration and below
        "seed": session.cfg.seed,
        **{name: part for name, part in parts.items() if part is not None},
        "store": {name: str(artefact.folder) for name, artefact in artefacts.items()},
        "environment": environment(),
    }


def read_json(artefact: Artefact | None, name: str) -> dict[str, Any] | None:
    """The content of a JSON file of an artefact; None without an artefact."""
    return None if artefact is None else json.loads((artefact.folder / name).read_text())


def localization_results(session: Session, artefact: Artefact | None) -> dict[str, Any] | None:
    """The scores of all sources of maps, with their labels in tables; None without an evaluation."""
    scores = read_json(artefact, RESULT)
    if scores is None:
        return None
    for split, published in (plain(session.cfg.report.published) or {}).items():
        for name, miou in published.items():
            if split in scores.get(name, {}).get("split", {}):
                scores[name]["split"][split]["published"] = miou
    sources = [source for name, source in session.sources.items() if name in scores]
    return {s.name: scores[s.name] | {"label": s.label, "control": s.control} for s in sources}


def pseudo_mask_results(artefact: Artefact | None) -> dict[str, Any] | None:
    """The scores of all variants, and on top those of the last one on the first split; None without masks."""
    scores = read_json(artefact, SCORES)
    if scores is None:
        return None
    variant = list(scores)[-1]
    first = next((value for value in scores[variant].values() if isinstance(value, dict)), {})
    headline = {key: first[key] for key in ("miou", "iou") if key in first}
    return headline | {"variant": variant, "variants": scores}
