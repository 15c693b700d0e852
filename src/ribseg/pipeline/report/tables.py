"""All tables of a run: one that is declared here, or in `report.tables`, is printed and stands in the page.

With a `file` a table is also written as `tables/<file>.csv` and given to loggers, with its plain numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ribseg.checks import check_choice, within
from ribseg.errors import ConfigError, reason
from ribseg.pipeline.recipe.build import build
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.report.answer import network_line, result_lines
from ribseg.pipeline.report.records import SCORED, Record, records_of
from ribseg.pipeline.report.settings import ReportSettings
from ribseg.pipeline.report.table import Column, Declared, TableData
from ribseg.pipeline.report.table_files import TABLES_FOLDER, write_csv

SECTIONS = {  # of the page: title -> parts of the results
    "Localization maps": ("localization", "methods"),
    "Pseudo masks": ("pseudo_masks",),
    "Segmenter": ("segmenter",),
    "Information bottleneck": ("bottleneck",),
}


def size_note(records: Sequence[Record]) -> str:
    """The limits of the object sizes."""
    limits = dict.fromkeys(f"{one.place} up to {100 * (one.threshold or 0):.0f} %" for one in records)
    return f"Size: share of the image's scored pixels that belong to a class; {', '.join(limits)}."


NOTE = (
    "mIoU in percent over all classes and background, with 95 % bootstrap intervals over images. At fixed: "
    "at the threshold that is best on the other split, each row its own; no masks: at the one that Otsu's "
    "criterion gives without ground truth. * Controls: RIB towards an absent class, its maps taken for the "
    "true class; norm of the features, a centre prior and the whole image, each with CAM's classes. What a "
    "control gains as well is shape, not class."
)
MEAN_ERRORS_NOTE = (
    "False positives and negatives: of the union of predicted and true pixels, mean over classes, at fixed "
    "thresholds."
)
PXAP_NOTE = "PxAP: average precision of the pixels of each present class's map, pooled over the images."
BOX_NOTE = (
    "MaxBoxAccV2: share of maps with a box that overlaps a true one by the IoU, at the best threshold, mean "
    "over the three; true boxes are those around the regions of the masks."
)
BOUNDARY_NOTE = (
    "Boundary F: of boundary pixels within .0075 of the diagonal, mean over classes, at fixed thresholds."
)
COST_NOTE = (
    "Seconds of one process for the maps of an image with a class, its views at hand; peak memory of the "
    "first process, with the libraries that it has loaded."
)
COVERAGE_NOTE = (
    "Pixels of each class in an image, ordered by distance from the peak of its CAM: 0-10 are the tenth that "
    "lies nearest to the most discriminative location. Each row at its own fixed threshold."
)
ERROR_NOTE = "Percent of the union of predicted and true pixels; with the IoU they add up to 100."
GAIN_NOTE = "Gain: mIoU points over the first variant, with its paired 95 % bootstrap interval over images."
RATIO_NOTE = (
    "High gradient ratio: the share of a region's pixels whose input gradient, smoothed and divided by the "
    "image's maximum, exceeds the threshold (bottleneck.gradient). G1 to the last but one are the "
    "convolutions, the last is the class prediction. Mean and standard deviation over seeds. Without "
    "smoothing the decay over the layers is more gradual; with normalise=percentile the collapse is weaker."
)


# Formats of cells, see `Column`.
MIOU_AT, INTERVAL, WHOLE = "{percent:.1f} ({threshold:.2f})", "{low:.1f}-{high:.1f}", "{percent:.0f}"
DIFFERENCE, ITS_INTERVAL = "{percent:+.1f}", "[{low:+.1f}, {high:+.1f}]"

MAP, LABEL = Column("maps", text="name"), Column("maps", text="label")
LEARNT_FROM = Column("segmenter trained on", text="label")
VARIANT = Column("variant", text="name")
CLASS, SPLIT = Column("class", text="place"), Column("split", text="split")
PRECISION, RECALL = Column("precision", "precision"), Column("recall", "recall")
PUBLISHED = Column("published best", "published", optional=True)
GROUP, AT_FIXED = "{place} (n = {number})", ", {split}, at fixed thresholds"
BY_NUMBER, BY_SIZE = Column(GROUP, "by_number_of_classes"), Column(GROUP, "by_object_size")
IOU, IOU_OF_SPLIT = Column("{name}", "class_iou"), Column("{name}, {split}", "class_iou")
ERRORS = Column("{name}, {detail}", "errors_per_class", note=ERROR_NOTE)
ERRORS_OF_SPLIT = ERRORS._replace(title="{name}, {split}, {detail}")

TABLES = (
    Declared(
        "localization",
        (
            MAP,
            Column("best (at)", "best_miou", MIOU_AT),
            Column("at fixed", "miou_at_fixed", MIOU_AT),
            Column("interval", "miou_at_fixed", INTERVAL),
            Column("gain over CAM", "gain_over_cam", f"{DIFFERENCE} {ITS_INTERVAL}"),
            Column("no masks (at)", "miou_unsupervised", MIOU_AT),
            Column("precision", "precision", WHOLE),
            Column("recall", "recall", WHOLE),
            PUBLISHED,
        ),
        "Localization maps on {split}, {number} images",
        splits="each",
        note=NOTE,
        bold=True,
    ),
    Declared(
        "localization",
        (
            MAP,
            Column("false pos.", "false_positive", note=MEAN_ERRORS_NOTE),
            Column("false neg.", "false_negative"),
            Column("PxAP", "pxap", note=PXAP_NOTE),
            Column("MaxBox\nAccV2", "max_box_acc_v2", note=BOX_NOTE, optional=True),
            Column("IoU {place}", "box_accuracy", optional=True),
            Column("boundary F", "boundary_f", note=BOUNDARY_NOTE, optional=True),
        ),
        "Localization on {split}, percent",
    ),
    Declared(
        "methods",
        (
            LABEL,
            Column("images", "images", "{value}"),
            Column("s an image", "seconds_per_image", "{value:.3g}", sortable=True),
            Column("{place},\nGiB", "peak_gib", "{value:.2f}"),
        ),
        "What the maps cost",
        note=COST_NOTE,
    ),
    Declared(
        "pseudo_masks",
        (
            VARIANT,
            SPLIT,
            Column("threshold", "threshold", "{value:.2f}"),
            Column("mIoU", "miou"),
            PRECISION,
            RECALL,
            Column("false\npos.", "false_positive"),
            Column("false\nneg.", "false_negative"),
            Column("gain", "gain", f"{DIFFERENCE} {ITS_INTERVAL}", note=GAIN_NOTE, optional=True),
            Column("boundary F", "boundary_f", optional=True),
        ),
        "Pseudo masks, percent",
        splits="all",
    ),
    Declared(
        "segmenter",
        (
            LEARNT_FROM,
            Column("masks' mIoU", "masks_miou", "{percent:.1f} ({detail})"),
            SPLIT,
            Column("images", "images", "{value}"),
            Column("mIoU", "miou"),
            PRECISION,
            RECALL,
            Column("published", "published"),
        ),
        "Segmenter, percent, one confusion matrix over all pixels",
        splits="all",
    ),
    Declared(
        "bottleneck",
        (
            Column("RIB", text="source"),
            Column("region", text="label"),
            Column("{place}", "ratio", "{value:.2f} ± {deviation:.2f}"),
        ),
        "High gradient ratio, mean ± std, seeds: {number}",
        note=RATIO_NOTE,
    ),
)
# Of the page alone: below the others of their section, to be opened.
DETAILS = (
    Declared("localization", (CLASS, IOU), f"IoU per class{AT_FIXED}"),
    Declared("localization", (CLASS, ERRORS), f"Errors per class{AT_FIXED}", controls=False),
    Declared("localization", (MAP, BY_NUMBER), f"mIoU by number of classes in the image{AT_FIXED}"),
    Declared("localization", (MAP, BY_SIZE), f"mIoU by object size{AT_FIXED}", note=size_note),
    Declared(
        "localization",
        (MAP, Column("{place}", "coverage", WHOLE)),
        "Coverage of objects by distance from CAM's peak, {split}, percent",
        note=COVERAGE_NOTE,
    ),
    Declared("pseudo_masks", (CLASS, IOU_OF_SPLIT), "IoU per class", splits="all"),
    Declared("pseudo_masks", (CLASS, ERRORS), "Errors per class, {split}"),
    Declared("pseudo_masks", (VARIANT, BY_NUMBER), "mIoU by number of classes in the image"),
    Declared("pseudo_masks", (VARIANT, BY_SIZE), "mIoU by object size"),
    Declared(
        "segmenter",
        (LEARNT_FROM, Column("{place}", "validation")),
        "mIoU on {split} by iterations, at one scale, while it was trained, percent",
    ),
    Declared("segmenter", (CLASS, IOU_OF_SPLIT), "IoU per class", splits="all"),
    Declared("segmenter", (CLASS, ERRORS_OF_SPLIT), "Errors per class", splits="all"),
)
# Of the files and loggers alone: with the plain numbers.
PLAIN_IOU = (CLASS, Column("{label}", "class_iou"))
FILES = (
    *(Declared(part, PLAIN_IOU, file=f"iou/{part}/{{split}}") for part in SCORED),
    Declared(
        "localization",
        (LABEL, Column("threshold", text="threshold"), Column("{place}", "curve")),
        file="curves/{split}",
    ),
    Declared(
        "methods",
        (
            LABEL,
            Column("images", "images"),
            Column("seconds_per_image", "seconds_per_image"),
            Column("{place}_gib", "peak_gib"),
        ),
        file="costs",
    ),
)


def own_tables(session: Session) -> dict[str, Declared]:
    """Name -> table of `report.tables`.

    Raises:
        ConfigError: one cannot be made, or is no `Declared` of a known part with a file of its own.
    """
    found: dict[str, Declared] = {}
    taken = {one.file for one in (*FILES, *TABLES, *DETAILS)}
    for name, node in (session.settings[ReportSettings].tables or {}).items():
        with within(f"report.tables.{name}"):
            table = build(node)
            if not isinstance(table, Declared):
                raise ConfigError(
                    f"expected a _target_ that gives a {Declared.__module__}.Declared, got "
                    f"{type(table).__name__}"
                )
            check_choice("part", table.part, [part for parts in SECTIONS.values() for part in parts])
            check_choice("splits", table.splits, ("each", "last", "all"))
            if table.file and table.file in {*taken, *(other.file for other in found.values())}:
                raise ConfigError(f"file: expected a name that no other table has, got {table.file!r}")
        found[name] = table
    return found


def check_own_tables(session: Session) -> None:
    """Makes the tables of `report.tables` of invented numbers, before the first stage.

    Raises:
        ConfigError: see `own_tables`; or one cannot show its numbers.
    """
    for name, table in own_tables(session).items():
        with within(f"report.tables.{name}"):
            try_table(table)


def try_table(table: Declared) -> None:
    """Raises a ConfigError unless a table can be made of invented numbers."""
    try:
        measures = {column.measure for column in table.columns if column.measure}
        part = Record(table.part, "cam", "CAM", split="val", value=0.5, place="cat", number=1)
        records = [replace(part, measure=measure) for measure in sorted(measures)]
        tables = [*table.tables(records), *(made for _, made in table.files(records))]
    except Exception as error:  # a user's titles, formats and attributes fail in ways of their own
        raise ConfigError(f"the table cannot be made: {type(error).__name__}: {reason(error)}") from error
    if not tables:
        raise ConfigError("expected columns with a measure, as Column('mIoU', 'miou'), found none")


def shown_tables(records: Sequence[Record], declared: Sequence[Declared] = TABLES) -> list[TableData]:
    """The tables with numbers of a run."""
    return [table for one in declared for table in one.tables(records)]


def file_tables(records: Sequence[Record], own: Iterable[Declared] = ()) -> dict[str, TableData]:
    """Name -> table, of those for files and loggers, with those of `report.tables`."""
    return {name: table for one in (*FILES, *TABLES, *DETAILS, *own) for name, table in one.files(records)}


def run_records(session: Session, results: Mapping[str, Any]) -> list[Record]:
    """The numbers of a run, with the names of its classes."""
    scored = any(part in results for part in SCORED)  # the toy experiment has no data set
    return records_of(results, session.data.classes if scored else ())


def print_tables(session: Session, results: Mapping[str, Any]) -> None:
    """Prints the tables and lines of a run."""
    records, own = run_records(session, results), own_tables(session)
    for name, table in own.items():
        if not any(True for _ in table.tables(records)):
            known = sorted({one.measure for one in records if one.part == table.part})
            session.warn(f"report.tables.{name} is empty; its part has {', '.join(known) or 'no numbers'}")
    for shown in shown_tables(records, (*TABLES, *own.values())):
        session.console.print(shown.for_terminal())
    for line in result_lines(results):
        session.console.say(line)
    if "bottleneck" in results:
        session.console.say(network_line(results["bottleneck"]))


def write_tables(session: Session, results: Mapping[str, Any]) -> None:
    """Writes the tables with a file into the run's folder, whatever the loggers are."""
    for name, table in file_tables(run_records(session, results), own_tables(session).values()).items():
        path = session.output / TABLES_FOLDER / f"{name.replace('/', '_')}.csv"
        write_csv(path, table.columns, table.rows)
