"""Tables of localization maps, and lines about a run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.report.bottleneck_report import network_line, ratio_table
from ribseg.pipeline.report.cost_tables import cost_table
from ribseg.pipeline.report.mask_tables import has_scored_masks, mask_table
from ribseg.pipeline.report.segmenter_report import segmenter_table
from ribseg.pipeline.report.table import (
    Columns,
    TableData,
    class_table,
    group_table,
    percent,
    percent_interval,
    signed_interval,
)

CONTROL = "*"  # marks the names of controls
MAP_HEADER = (
    "maps",
    "best (at)",
    "at fixed",
    "interval",
    "gain over CAM",
    "no masks (at)",
    "precision",
    "recall",
)


def map_tables(localization: Mapping[str, Any]) -> list[TableData]:
    """The tables of localization maps, one per split, mIoU in percent."""
    splits = list(next(iter(localization.values()))["split"])
    return [_split_table(localization, split, NOTE if split == splits[-1] else "") for split in splits]


def source_name(values: Mapping[str, Any]) -> str:
    """The name of a source of maps in tables: its label, with a mark for controls."""
    return f"{values['label']} {CONTROL}" if values["control"] else str(values["label"])


def _split_table(localization: Mapping[str, Any], split: str, note: str) -> TableData:
    scores = {source_name(values): values["split"][split] for values in localization.values()}
    header: Sequence[str] = MAP_HEADER
    rows = [[name, *_cells(score)] for name, score in scores.items()]
    if any("published" in score for score in scores.values()):
        header = (*header, "published best")
        rows = [[*row, percent(scores[row[0]].get("published"))] for row in rows]
    images = next(iter(scores.values()))["images"]
    title = f"Localization maps on {split}, {images} images"
    methods = tuple(name for name in scores if not name.endswith(CONTROL))
    return TableData(title, header, rows, note, bold=methods)


def number_table(localization: Mapping[str, Any]) -> TableData:
    """The table of the mIoU by the number of classes in an image, on the last split."""
    title = f"mIoU by number of classes in the image, {last_split(localization)}, at fixed thresholds"
    return _group_table(localization, "by_number_of_classes", "classes", title)


def size_table(localization: Mapping[str, Any]) -> list[TableData]:
    """The table of the mIoU by object size, on the last split; [] if no image has objects."""
    groups = _last(next(iter(localization.values())))["by_object_size"]
    if not groups:
        return []
    limits = ", ".join(f"{g['size']} up to {100 * g['up_to']:.0f} %" for g in groups)
    note = f"Size: share of the image's scored pixels that belong to a class; {limits}."
    title = f"mIoU by object size, {last_split(localization)}, at fixed thresholds"
    return [_group_table(localization, "by_object_size", "size", title, note)]


def _group_table(
    localization: Mapping[str, Any], key: str, name: str, title: str, note: str = ""
) -> TableData:
    """The table of the mIoU of maps in groups of images."""
    last = {source_name(values): _last(values) for values in localization.values()}
    return group_table(last, key, name, title, "maps", note)


def localization_table(localization: Mapping[str, Any]) -> list[TableData]:
    """The table of the measures of localization: PxAP, and boxes and boundaries where measured.

    [] for results of a version that did not measure them.
    """
    split = last_split(localization)
    found = {source_name(values): _last(values) for values in localization.values()}
    if not all("pxap" in scores for scores in found.values()):
        return []
    columns, notes = ["maps", "false pos.", "false neg.", "PxAP"], [MEAN_ERRORS_NOTE, PXAP_NOTE]
    rows = [
        [name, *(percent(class_mean(scores[key])) for key in ERRORS.values()), percent(scores["pxap"])]
        for name, scores in found.items()
    ]
    boxes = {name: scores["max_box_acc_v2"] for name, scores in found.items()}
    if any(boxes.values()):
        limits = next(each["limits"] for each in boxes.values() if each)
        columns += ["MaxBox\nAccV2", *(f"IoU {limit:g}" for limit in limits)]
        rows = [[*row, *_box_cells(boxes[row[0]], len(limits))] for row in rows]
        notes.append(BOX_NOTE)
    if any("boundary_f" in scores for scores in found.values()):
        columns.append("boundary F")
        rows = [[*row, percent(found[row[0]]["boundary_f"])] for row in rows]
        notes.append(BOUNDARY_NOTE)
    return [TableData(f"Localization on {split}, percent", columns, rows, " ".join(notes))]


def class_mean(values: Sequence[float | None]) -> float | None:
    """The mean over the classes that are known, without background; None if none is.

    >>> class_mean([0.9, 0.25, None, 0.75]), class_mean([0.9, None])
    (0.5, None)
    """
    found = [value for value in values[1:] if value is not None]
    return sum(found) / len(found) if found else None


def _box_cells(boxes: Mapping[str, Any] | None, limits: int) -> list[str]:
    if boxes is None:
        return ["-"] * (1 + limits)
    return [percent(boxes["mean"]), *map(percent, boxes["per_limit"])]


def error_table(
    columns: Mapping[str, Mapping[str, Any]], classes: Sequence[str], title: str
) -> list[TableData]:
    """The table of false positives and false negatives of background and each class.

    [] for results of a version that did not measure them.

    Args:
        columns: name -> scores with "false_positive_per_class" and "false_negative_per_class".
        classes: C names.
        title: of the table.
    """
    found = {
        f"{name}, {said}": scores[key]
        for name, scores in columns.items()
        for said, key in ERRORS.items()
        if key in scores
    }
    return [replace(class_table(title, classes, found), note=ERROR_NOTE)] if found else []


def map_errors(localization: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Method, without controls -> its scores on the last split."""
    return {str(v["label"]): _last(v) for v in localization.values() if not v["control"]}


Groups = dict[str, dict[str, list[float | None]]]


def group_curves(localization: Mapping[str, Any]) -> tuple[Groups, dict[str, list[str]]]:
    """MIoU of the methods, without controls, in groups of images; and the names of the groups.

    Returns:
        Grouping -> method -> mIoU of each group; grouping -> names of its groups.
    """
    curves: Groups = {}
    names: dict[str, list[str]] = {}
    for key, name, title in (
        ("by_number_of_classes", "classes", "number of classes"),
        ("by_object_size", "size", "object size"),
    ):
        found = {v["label"]: _last(v)[key] for v in localization.values() if not v["control"]}
        groups: list[Mapping[str, Any]] = next(iter(found.values()), [])
        if groups:
            curves[title] = {label: [group["miou"] for group in rows] for label, rows in found.items()}
            names[title] = [f"{group[name]}\n(n = {group['images']})" for group in groups]
    return curves, names


def threshold_curves(localization: Mapping[str, Any]) -> dict[str, dict[str, list[float | None]]]:
    """Method -> its scores at all thresholds, without controls, on the last split."""
    return {v["label"]: _last(v)["curve"] for v in localization.values() if not v["control"]}


def coverage_table(localization: Mapping[str, Any]) -> list[TableData]:
    """The table of the coverage by distance from CAM's peak, on the last split; [] without coverage."""
    curves = coverage_curves(localization)
    if not curves:
        return []
    tenths = len(next(iter(curves.values())))
    columns = [f"{10 * tenth}-{10 * tenth + 10}" for tenth in range(tenths)]
    rows = [[name, *(f"{100 * value:.0f}" for value in curve)] for name, curve in curves.items()]
    title = f"Coverage of objects by distance from CAM's peak, {last_split(localization)}, percent"
    return [TableData(title, ["maps", *columns], rows, COVERAGE_NOTE)]


def coverage_curves(localization: Mapping[str, Any]) -> dict[str, list[float]]:
    """Source -> share of the objects' pixels found, for ten bins by distance, on the last split."""
    found = {source_name(values): _last(values)["coverage"] for values in localization.values()}
    return {name: curve for name, curve in found.items() if curve is not None}


def _last(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return list(values["split"].values())[-1]


def last_split(localization: Mapping[str, Any]) -> str:
    """The last split, which the detailed tables show."""
    return str(list(next(iter(localization.values()))["split"])[-1])


COVERAGE_NOTE = (
    "Pixels of each class in an image, ordered by distance from the peak of its CAM: 0-10 are the tenth that "
    "lies nearest to the most discriminative location. Each row at its own fixed threshold."
)


def _cells(score: Mapping[str, Any]) -> list[str]:
    interval = gain = "-"
    if score["miou_at_fixed"] is not None:
        interval = percent_interval(score["interval_at_fixed"])
    if "gain_over_cam" in score:
        gain = f"{100 * score['gain_over_cam']:+.1f} {signed_interval(score['gain_interval'])}"
    return [
        miou_at(score["best_miou"], score["best_threshold"]),
        miou_at(score["miou_at_fixed"], score["fixed_threshold"]),
        interval,
        gain,
        miou_at(score["miou_unsupervised"], score["unsupervised_threshold"]),
        f"{100 * score['precision']:.0f}",
        f"{100 * score['recall']:.0f}",
    ]


def miou_at(miou: float | None, threshold: float | None) -> str:
    """An mIoU and its threshold as text.

    >>> miou_at(0.5, 0.35), miou_at(None, None)
    ('50.0 (0.35)', '-')
    """
    return "-" if miou is None or threshold is None else f"{100 * miou:.1f} ({threshold:.2f})"


NOTE = (
    "mIoU in percent over all classes and background, with 95 % bootstrap intervals over images. At fixed: "
    "at the threshold that is best on the other split, each row its own; no masks: at the one that Otsu's "
    "criterion gives without ground truth. * Controls: RIB towards an absent class, its maps taken for the "
    "true class; norm of the features, a centre prior and the whole image, each with CAM's classes. What a "
    "control gains as well is shape, not class."
)


ERRORS = {"false pos.": "false_positive_per_class", "false neg.": "false_negative_per_class"}
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
ERROR_NOTE = "Percent of the union of predicted and true pixels; with the IoU they add up to 100."


def policy_line(prepared: Mapping[str, Any]) -> str:
    """A line about the policy for COCO's masks, on which every mIoU depends."""
    parts = ", ".join(f"{name}={prepared[name]}" for name in ("crowd", "overlap", "unannotated"))
    return f"Masks and labels by the policy {prepared['policy']} ({parts})."


def skipped_line(skipped: Mapping[str, Mapping[str, str]]) -> str:
    """A line about the skipped images."""
    parts = ", ".join(f"{len(broken)} of {split}" for split, broken in skipped.items() if broken)
    return (
        f"Skipped because they are broken, not in any result: {parts} (ids and reasons are in results.json)."
    )


def adaptation_line(adaptation: Mapping[str, Any]) -> str:
    """A line about the adaptation of a method."""
    number = adaptation["images"] - adaptation["without_class"]
    stopped = ", ".join(f"{rule.replace('_', ' ')} {count}" for rule, count in adaptation["stopped"].items())
    return (
        f"{adaptation['label']} adapted {number} of {adaptation['images']} images, "
        f"{adaptation['steps_mean']:.1f} steps and {adaptation['seconds_per_image']:.2f} s each; "
        f"stopped early: {stopped}."
    )


def map_columns(localization: Mapping[str, Any]) -> Columns:
    """Source of maps -> IoU per class on the last split, at its fixed threshold, else at its best."""
    found = {source_name(values): _last(values) for values in localization.values()}
    return {name: scores["iou_at_fixed"] or scores["iou"] for name, scores in found.items()}


def result_tables(results: Mapping[str, Any]) -> list[TableData]:
    """All tables of a run."""
    found = results.get("localization")
    tables = [*map_tables(found), *localization_table(found)] if found else []
    tables += [cost_table(results["methods"])] if results.get("methods") else []
    tables += [mask_table(results["pseudo_masks"])] if has_scored_masks(results) else []
    builders = {"segmenter": segmenter_table, "bottleneck": ratio_table}
    return tables + [build(results[part]) for part, build in builders.items() if part in results]


def result_lines(results: Mapping[str, Any]) -> list[str]:
    """The lines that accompany the tables."""
    adapted = [facts for facts in results.get("methods", {}).values() if facts["steps_mean"] > 0]
    lines = [adaptation_line(facts) for facts in adapted]
    lines += [policy_line(results["prepared"])] if "policy" in results.get("prepared", {}) else []
    return lines + ([skipped_line(results["skipped"])] if "skipped" in results else [])


def print_tables(context: Context, results: Mapping[str, Any]) -> None:
    """Prints the tables and lines of a run."""
    for table in result_tables(results):
        context.console.print(table.for_terminal())
    for line in result_lines(results):
        context.console.say(line)
    if "bottleneck" in results:
        context.console.say(network_line(results["bottleneck"]))
