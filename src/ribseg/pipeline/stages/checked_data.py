"""The files of the data: each is opened once before the first stage, and unusual findings are reported."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from ribseg.data.base import BaseDataset
from ribseg.data.check.data_notes import data_results, nothing_to_learn, print_notes, print_sources, sources
from ribseg.data.check.dataset import check_dataset
from ribseg.data.check.mask_facts import MaskFacts
from ribseg.data.check.mask_notes import unusable_masks
from ribseg.errors import DataError
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.stages.classifier import ClassifierSettings
from ribseg.store.artefact import Artefact


class CheckedData:
    """The check of a run's data; its report is kept in the store.

    Args:
        session: of the run.
        reported: facts whose notes have been printed already.

    Raises:
        DataError: there is nothing to learn.
    """

    def __init__(self, session: Session, reported: Mapping[str, Any]) -> None:
        self.session, self.facts = session, dict(reported)
        if not session.data.train.labels.any():
            raise DataError(nothing_to_learn(session.data.train, str(session.cfg.data.labels)))
        if not reported:
            print_sources(session.say, sources(session.data))

    @property
    def skips(self) -> bool:
        """Whether broken images are left out. They change the lists, and so the digests of all results."""
        return self.session.data.on_error == "skip"

    def check_files(self) -> None:
        """Opens every file once, in the first process; leaves broken images out if the data says so."""
        session, artefact = self.session, self._artefact()
        masks = self._needs_masks()

        def check() -> dict[str, Any]:
            session.say("checking all files", "data")
            found = session.data.check(session.cfg.check_files, masks, progress=session.progress)
            return {split: asdict(report) for split, report in found.items()}

        if not artefact.finished:
            session.group.on_first(lambda: artefact.compute(check, session.say))
        if self.skips:
            session.skip({split: facts["skipped"] for split, facts in artefact.facts.items()})
            for split, broken in session.skipped.items():
                if broken:
                    session.warn(f"{len(broken)} images of {split}; reasons in {artefact.folder}", "skipped")

    def note(self) -> None:
        """Gathers the data facts, as far as masks have been decoded, and prints their notes if they are new.

        Raises:
            DataError: the scores of the masks could not mean anything.
        """
        values = mask_values(self._artefact())
        check_usable(self.session, values)
        facts = facts_of(self.session, values)
        if facts != self.facts:
            print_notes(self.session.say, facts)
        self.facts = facts

    def _artefact(self) -> Artefact:
        session, masks = self.session, self._needs_masks()
        settings = {
            "masks": list(session.data.eval_splits) if masks else [],
            "full": session.cfg.check_files,
            "values": True,
            "on_error": session.data.on_error,
        }
        return session.store.artefact("data", settings, {}, session.data.fingerprint(masks=masks))

    def _needs_masks(self) -> bool:
        """Whether the masks of the evaluated splits are checked.

        If broken images are skipped always, if there are any masks: the training images must not depend on
        whether this run includes the evaluation.
        """
        scoring = ("evaluate", "pseudo_masks", "segmenter_test_")
        if any(name.startswith(scoring) for name in self.session.run.chosen):
            return True
        evals = self.session.data.evals.values()
        return self.skips and any(folder.has_mask(i) for folder in evals for i in folder.ids)


def facts_of(session: Session, values: Mapping[str, MaskFacts]) -> dict[str, Any]:
    """The data facts for the chosen methods, see `data_results`."""
    entries, chosen = session.entries.values(), session.run.chosen
    drawing = [e for e in entries if e.references and not e.control and (e.name in chosen or not chosen)]
    searched = any(entry.searches_rate for entry in drawing)
    trained = not session.settings[ClassifierSettings].given
    return data_results(session.data, values, trained=trained, drawn=bool(drawing), searched=searched)


def check_full_masks(session: Session, folder: BaseDataset) -> None:
    """Checks every mask that the fully supervised segmenter learns from; the report is kept in the store."""
    full = session.cfg.check_files
    settings = {"masks": [folder.split], "full": full, "values": True}
    artefact = session.store.artefact("data", settings, {}, folder.fingerprint(masks=True))
    if not artefact.finished:
        check = partial(check_dataset, folder, masks=True, full=full, progress=session.progress)
        artefact.compute(lambda: {folder.split: asdict(check())}, session.say)
    check_usable(session, mask_values(artefact))


def mask_values(artefact: Artefact) -> dict[str, MaskFacts]:
    """Split -> facts of its masks, if the check has decoded them."""
    facts = artefact.facts if artefact.finished else {}
    return {split: MaskFacts(**one["values"]) for split, one in facts.items() if one.get("values")}


def check_usable(session: Session, values: Mapping[str, MaskFacts]) -> None:
    """Raises a DataError if masks cannot be scored or learnt from."""
    found = [unusable_masks(split, facts, session.data.classes) for split, facts in values.items()]
    if any(found):
        raise DataError("\n".join(filter(None, found)))
