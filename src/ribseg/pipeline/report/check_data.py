"""`run=[check_data]` and `ribseg check`: a report on the data; errors in the data give exit status 1."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ribseg.data.check.data_notes import print_notes, print_sources, sources
from ribseg.data.check.mask_facts import MaskFacts
from ribseg.data.check.mask_notes import unusable_masks
from ribseg.data.check.survey import Survey, duplicates, overlaps, survey
from ribseg.data.splits import DataSplits
from ribseg.errors import DataError, list_problems
from ribseg.files import write_json
from ribseg.pipeline.recipe.console import LoggedConsole
from ribseg.pipeline.report.answer import policy_line
from ribseg.pipeline.report.table import TableData

WITHIN = "lists within another"
SHOW = 5  # examples of each kind that are printed; the file has all
Groups = Mapping[str, Sequence[str]]  # kind of finding -> images or files
# Beginning of a kind of finding -> advice.
SUGGESTIONS = {
    "labels differ from": "data.labels=xml|mask|FILE.csv chooses the source; say which one beside results",
    "the same image in": "remove it from one of the lists: scores on training images are meaningless",
    WITHIN: "intended if training images are evaluated, too; else remove them from one of the lists",
    "rare classes": "expect poor maps for them; see the table per class, not only the mean",
    "classes without an image": "remove them from classes.txt, or expect no IoU for them",
    "shorter side below": "maps of such small images are coarse; data.scales=[2,1,3,4] enlarges them",
    "one side more than": "training crops see a small part of such images",
}


def report_data(
    data: DataSplits,
    facts_of: Callable[[Mapping[str, MaskFacts]], dict[str, Any]],
    console: LoggedConsole,
    path: Path | None,
    progress: bool | str,
    preparation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Surveys all splits, prints the findings, and writes them as JSON.

    Args:
        data: the splits.
        facts_of: the data facts, from those of the masks; see `data_results`.
        console: for tables and messages.
        path: of the file; None writes none.
        progress: how progress is shown, see `ribseg.progress.check_progress`.
        preparation: settings and facts of `prepare`.

    Returns:
        The content of the file.

    Raises:
        DataError: lists the errors in the data, if there are any.
    """
    evals, prepared = data.eval_splits, preparation or {}
    console.say(", ".join(f"{len(folder)} of {folder.split}" for folder in data.splits), "images")
    print_sources(console.say, sources(data))
    surveys = [survey(folder, folder.split in evals, progress=progress) for folder in data.splits]
    leaks, within = overlaps({folder.split: folder.ids for folder in data.splits})
    same = duplicates(surveys)
    same |= {kind: [*same.get(kind, []), *ids] for kind, ids in leaks.items()}
    print_survey(console, surveys, same, within)
    values = {one.split: one.values for one in surveys if one.values and one.split in evals}
    facts = facts_of(values)
    print_notes(console.say, facts)
    if "policy" in prepared:
        console.say(policy_line(prepared))
    errors = found_errors(surveys, same, values, data.classes)
    written = {
        "splits": [{k: v for k, v in asdict(one).items() if k != "digests"} for one in surveys],
        "duplicates": same,
        "within": within,
        "prepared": prepared,
        "data": facts,
        "errors": sum(map(len, errors.values())),
    }
    if path is not None:
        write_json(path, written)
    if errors:
        found = "--out FILE writes all of them" if path is None else f"All of them are in {path}"
        advice = f"{found}. Correct these files or remove them from the lists."
        raise DataError(list_problems(f"{written['errors']} errors in the data", errors, advice, SHOW))
    console.say("no errors" if path is None else f"no errors; all findings are in {path}")
    return written


def print_survey(
    console: LoggedConsole, surveys: Sequence[Survey], same: Groups, within: Sequence[str]
) -> None:
    """Prints the tables and the oddities."""
    for table in (split_table(surveys), images_table(surveys)):
        console.print(table.for_terminal())
    oddities = [(one.split, one.oddities) for one in surveys]
    for title, groups in [*oddities, ("splits", same), ("splits", {WITHIN: within} if within else {})]:
        for kind, items in groups.items():
            advice = next((text for start, text in SUGGESTIONS.items() if kind.startswith(start)), "")
            console.say(list_problems(f"{title}:", {kind: items}, advice, SHOW))


def found_errors(
    surveys: Sequence[Survey], same: Groups, values: Mapping[str, MaskFacts], classes: Sequence[str]
) -> dict[str, Sequence[str]]:
    """Kind -> errors that must be corrected before a training."""
    errors: dict[str, Sequence[str]] = {
        f"{one.split}: {kind}": items for one in surveys for kind, items in one.problems.items()
    }
    errors |= {kind: items for kind, items in same.items() if " and " in kind}
    unusable = [unusable_masks(split, facts, classes) for split, facts in values.items()]
    if any(unusable):
        errors["masks that cannot be scored"] = [text for text in unusable if text]
    return errors


def split_table(surveys: Sequence[Survey]) -> TableData:
    """The table of counts and sizes, with a column per split."""
    rows = {
        "images": [str(one.images) for one in surveys],
        "with a mask": [str(one.masks) for one in surveys],
        "without a label": [str(one.unlabelled) for one in surveys],
        "classes an image": [f"{sum(one.class_images.values()) / one.images:.2f}" for one in surveys],
    }
    for name in ("smallest", "median", "largest"):
        sizes = [one.sizes.get(name) for one in surveys]
        rows[f"{name} height x width"] = ["-" if size is None else f"{size[0]} x {size[1]}" for size in sizes]
    rows["files"] = [", ".join(f"{n} {kind}" for kind, n in one.kinds.items()) for one in surveys]
    rows["errors"] = [str(sum(map(len, one.problems.values()))) for one in surveys]
    columns = ["", *(one.split for one in surveys)]
    return TableData("Data", columns, [[name, *cells] for name, cells in rows.items()])


def images_table(surveys: Sequence[Survey]) -> TableData:
    """The table of images per class and split."""
    rows = [[name, *(str(one.class_images[name]) for one in surveys)] for name in surveys[0].class_images]
    return TableData("Images per class", ["class", *(one.split for one in surveys)], rows)
