"""Checks of the data before the first stage: every file is opened once, and unusual findings are reported."""

from collections.abc import Container, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from ribseg.data.check.data_notes import data_results, print_notes
from ribseg.data.check.dataset import check_dataset
from ribseg.data.check.mask_facts import MaskFacts
from ribseg.data.check.mask_notes import unusable_masks
from ribseg.errors import DataError
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import reference_methods
from ribseg.pipeline.stages.chains import FULL
from ribseg.pipeline.stages.classifier import CHECKPOINTS
from ribseg.pipeline.stages.evaluate import EvaluateStage
from ribseg.pipeline.stages.pseudo_masks import PseudoMasksStage
from ribseg.pipeline.stages.segmenter import training_folder
from ribseg.store.artefact import Artefact


def check_full_masks(context: Context) -> None:
    """Checks every mask that the fully supervised segmenter learns from; the report is kept in the store."""
    folder, full = training_folder(context, FULL), context.cfg.check_files
    settings = {"masks": [folder.split], "full": full, "values": True}
    artefact = context.store.artefact("data", settings, {}, folder.fingerprint(masks=True))
    if not artefact.finished:
        check = partial(check_dataset, folder, masks=True, full=full, progress=context.cfg.progress)
        artefact.compute(lambda: {folder.split: asdict(check())}, context.console.say)
    check_usable(context, mask_values(artefact))


def mask_values(artefact: Artefact) -> dict[str, MaskFacts]:
    """Split -> facts of its masks, if the check has decoded them."""
    facts = artefact.facts if artefact.finished else {}
    return {split: MaskFacts(**one["values"]) for split, one in facts.items() if one.get("values")}


def check_usable(context: Context, values: Mapping[str, MaskFacts]) -> None:
    """Raises a DataError if masks cannot be scored or learnt from."""
    found = [unusable_masks(split, facts, context.data.classes) for split, facts in values.items()]
    if any(found):
        raise DataError("\n".join(filter(None, found)))


def note_data(context: Context, reported: Mapping[str, Any]) -> dict[str, Any]:
    """The data facts, as far as the masks have been decoded; prints their notes.

    Args:
        context: of the run.
        reported: data facts whose notes have been printed; equal ones are not printed again.

    Raises:
        DataError: the scores of the masks could not mean anything.
    """
    values = mask_values(data_artefact(context))
    check_usable(context, values)
    facts = data_facts(context, values, context.cfg.run)
    if facts != reported:
        print_notes(context.console.say, facts)
    return facts


def data_facts(context: Context, values: Mapping[str, MaskFacts], methods: Container[str]) -> dict[str, Any]:
    """The data facts, see `data_results`, for some methods of the configuration."""
    drawing = reference_methods(context.cfg, methods)
    return data_results(
        context.data,
        values,
        trained=not any(context.cfg.classifier.get(name) for name in CHECKPOINTS),
        drawn=bool(drawing),
        searched=any(entry.searches_rate for entry in drawing),
    )


def check_data(context: Context) -> None:
    """Checks every file once; the report is kept in the store."""
    artefact = data_artefact(context)
    if artefact.finished:
        return

    def check() -> dict[str, Any]:
        context.console.say("checking all files", "data")
        full, masks = context.cfg.check_files, needs_masks(context)
        found = context.data.check(full, masks, progress=context.cfg.progress)
        return {split: asdict(report) for split, report in found.items()}

    artefact.compute(check, context.console.say)


def data_artefact(context: Context) -> Artefact:
    """The artefact of the data check."""
    masks = needs_masks(context)
    settings = {
        "masks": list(context.data.eval_splits) if masks else [],
        "full": context.cfg.check_files,
        "values": True,
        "on_error": context.data.on_error,
    }
    return context.store.artefact("data", settings, {}, context.data.fingerprint(masks=masks))


def needs_masks(context: Context) -> bool:
    """Whether the masks of the evaluated splits are checked.

    With data.on_error=skip always, if there are any: the training images must not depend on whether this run
    includes the evaluation.
    """
    run = context.cfg.run
    masks = [name for name in run if name.startswith(PseudoMasksStage.kind)]  # of all chains
    if EvaluateStage.name in run or masks or any(name.startswith("segmenter_test_") for name in run):
        return True
    evals = context.data.evals.values()
    return context.data.on_error == "skip" and any(folder.has_mask(i) for folder in evals for i in folder.ids)


def skip_broken(context: Context) -> None:
    """Removes the images that the check found broken from the lists, in every process, and reports them."""
    artefact = data_artefact(context)
    context.skip({split: facts["skipped"] for split, facts in artefact.facts.items()})
    for split, broken in context.skipped.items():
        if broken:
            context.console.say(
                f"{len(broken)} images of {split}; reasons in {artefact.folder}", "skipped", "yellow"
            )
