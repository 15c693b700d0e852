"""All tables of a run: one that is declared here is printed, stands in the page, and is logged.

With a `file` a table is also written as `tables/<file>.csv` and given to loggers, with its plain numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.report.answer import network_line, result_lines
from ribseg.pipeline.report.records import SCORED, Record, records_of
from ribseg.pipeline.report.table import (
    Column,
    Declared,
    Sortable,
    TableData,
    percent,
    percent_interval,
    signed_interval,
)
from ribseg.pipeline.report.table_files import TABLES_FOLDER, write_csv

SECTIONS = {  # of the page: title -> parts of the results
    "Localization maps": ("localization", "methods"),
    "Pseudo masks": ("pseudo_masks",),
    "Segmenter": ("segmenter",),
    "Information bottleneck": ("bottleneck",),
}


def miou_at(record: Record) -> str:
    """An mIoU and its threshold."""
    if record.value is None or record.threshold is None:
        return "-"
    return f"{percent(record.value)} ({record.threshold:.2f})"


def its_interval(record: Record) -> str:
    """The interval of a score."""
    return "-" if record.interval is None else percent_interval(record.interval)


def points(record: Record) -> str:
    """A difference in percentage points."""
    return "-" if record.value is None else f"{100 * record.value:+.1f}"


def signed(record: Record) -> str:
    """The interval of a difference."""
    return "-" if record.interval is None else signed_interval(record.interval)


def gain(record: Record) -> str:
    """A difference with its interval."""
    return f"{points(record)} {signed(record)}" if record.interval else points(record)


def whole_percent(record: Record) -> str:
    """A fraction in percent, without decimals."""
    return "-" if record.value is None else f"{100 * record.value:.0f}"


def two_digits(record: Record) -> str:
    """A number with two digits after the point."""
    return "-" if record.value is None else f"{record.value:.2f}"


def count(record: Record) -> str:
    """A number of images."""
    return str(record.value)


def learnt_masks(record: Record) -> str:
    """The score of the masks that a segmenter learnt from, and their split."""
    return f"{percent(record.value)} ({record.other_split})"


def seconds(record: Record) -> str:
    """Seconds, by which a page sorts."""
    return Sortable(f"{record.value:.3g}", record.value or 0.0)


def mean_and_deviation(record: Record) -> str:
    """A mean and its standard deviation."""
    return "-" if record.value is None else f"{record.value:.2f} ± {record.deviation:.2f}"


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


def errors(title: str) -> tuple[Column, Column]:
    """The columns of both kinds of errors of each class."""
    return (
        Column(f"{title}, false pos.", "false_positive_per_class"),
        Column(f"{title}, false neg.", "false_negative_per_class", note=ERROR_NOTE),
    )


MAP = Column("maps", cell=lambda record: record.name)
VARIANT = Column("variant", cell=lambda record: record.name)
SPLIT = Column("split", cell=lambda record: record.split)
LABEL = Column("maps", cell=lambda record: record.label)
PUBLISHED = Column("published best", "published", optional=True)
GROUP = "{place} (n = {number})"

TABLES = (
    Declared(
        "localization",
        (
            MAP,
            Column("best (at)", "best_miou", miou_at),
            Column("at fixed", "miou_at_fixed", miou_at),
            Column("interval", "miou_at_fixed", its_interval),
            Column("gain over CAM", "gain_over_cam", gain),
            Column("no masks (at)", "miou_unsupervised", miou_at),
            Column("precision", "precision", whole_percent),
            Column("recall", "recall", whole_percent),
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
            Column("images", "images", count),
            Column("s an image", "seconds_per_image", seconds),
            Column("{place},\nGiB", "peak_gib", two_digits),
        ),
        "What the maps cost",
        note=COST_NOTE,
    ),
    Declared(
        "pseudo_masks",
        (
            VARIANT,
            SPLIT,
            Column("threshold", "threshold", two_digits),
            Column("mIoU", "miou"),
            Column("precision", "precision"),
            Column("recall", "recall"),
            Column("false\npos.", "false_positive"),
            Column("false\nneg.", "false_negative"),
            Column("gain", "gain", gain, note=GAIN_NOTE, optional=True),
            Column("boundary F", "boundary_f", optional=True),
        ),
        "Pseudo masks, percent",
        splits="all",
    ),
    Declared(
        "segmenter",
        (
            Column("segmenter trained on", cell=lambda record: record.label),
            Column("masks' mIoU", "masks_miou", learnt_masks),
            SPLIT,
            Column("images", "images", count),
            Column("mIoU", "miou"),
            Column("precision", "precision"),
            Column("recall", "recall"),
            Column("published", "published"),
        ),
        "Segmenter, percent, one confusion matrix over all pixels",
        splits="all",
    ),
    Declared(
        "bottleneck",
        (
            Column("RIB", cell=lambda record: record.source),
            Column("region", cell=lambda record: record.label),
            Column("{place}", "ratio", mean_and_deviation),
        ),
        "High gradient ratio, mean ± std, seeds: {number}",
        note=RATIO_NOTE,
    ),
)
# Of the page alone: below the others of their section, to be opened.
DETAILS = (
    Declared(
        "localization",
        (Column("{name}", "class_iou"),),
        "IoU per class, {split}, at fixed thresholds",
        by_class=True,
    ),
    Declared(
        "localization",
        errors("{name}"),
        "Errors per class, {split}, at fixed thresholds",
        controls=False,
        by_class=True,
    ),
    Declared(
        "localization",
        (MAP, Column(GROUP, "by_number_of_classes")),
        "mIoU by number of classes in the image, {split}, at fixed thresholds",
    ),
    Declared(
        "localization",
        (MAP, Column(GROUP, "by_object_size")),
        "mIoU by object size, {split}, at fixed thresholds",
        note=size_note,
    ),
    Declared(
        "localization",
        (MAP, Column("{place}", "coverage", whole_percent)),
        "Coverage of objects by distance from CAM's peak, {split}, percent",
        note=COVERAGE_NOTE,
    ),
    Declared(
        "pseudo_masks",
        (Column("{name}, {split}", "class_iou"),),
        "IoU per class",
        splits="all",
        by_class=True,
    ),
    Declared("pseudo_masks", errors("{name}"), "Errors per class, {split}", by_class=True),
    Declared(
        "pseudo_masks",
        (VARIANT, Column(GROUP, "by_number_of_classes")),
        "mIoU by number of classes in the image",
    ),
    Declared("pseudo_masks", (VARIANT, Column(GROUP, "by_object_size")), "mIoU by object size"),
    Declared(
        "segmenter", (Column("{label}, {split}", "class_iou"),), "IoU per class", splits="all", by_class=True
    ),
    Declared("segmenter", errors("{label}, {split}"), "Errors per class", splits="all", by_class=True),
)
# Of the files and loggers alone: by split, with the plain numbers of all sources.
FILES = (
    *(
        Declared(part, (Column("{label}", "class_iou"),), by_class=True, file=f"iou/{part}/{{split}}")
        for part in ("localization", "pseudo_masks", "segmenter")
    ),
    Declared(
        "localization",
        (LABEL, Column("threshold", cell=lambda record: record.threshold), Column("{place}", "curve")),
        file="curves/{split}",
        key=("source", "threshold"),
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


def shown_tables(records: Sequence[Record], declared: Sequence[Declared] = TABLES) -> list[TableData]:
    """The tables of a run that are printed, or its `DETAILS`."""
    return [table for one in declared for table in one.tables(records)]


def file_tables(records: Sequence[Record]) -> dict[str, TableData]:
    """Name -> table, of those for files and loggers."""
    return {name: table for one in (*FILES, *TABLES) for name, table in one.files(records)}


def run_records(context: Context, results: Mapping[str, Any]) -> list[Record]:
    """The numbers of a run, with the names of its classes."""
    scored = any(part in results for part in SCORED)  # the toy experiment has no data set
    return records_of(results, context.data.classes if scored else ())


def print_tables(context: Context, results: Mapping[str, Any]) -> None:
    """Prints the tables and lines of a run."""
    for table in shown_tables(run_records(context, results)):
        context.console.print(table.for_terminal())
    for line in result_lines(results):
        context.console.say(line)
    if "bottleneck" in results:
        context.console.say(network_line(results["bottleneck"]))


def write_tables(context: Context, results: Mapping[str, Any]) -> None:
    """Writes the tables with a file into the run's folder, whatever the loggers are."""
    for name, table in file_tables(run_records(context, results)).items():
        path = context.output / TABLES_FOLDER / f"{name.replace('/', '_')}.csv"
        write_csv(path, table.columns, table.rows)
