"""Tables of a run, on the terminal and in the report: localization maps and pseudo masks."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ribseg.pipeline.engine.context import Context
from ribseg.pipeline.report.bottleneck_report import bottleneck_tables, network_line
from ribseg.pipeline.report.segmenter_report import segmenter_table

CONTROL = "*"  # marks the names of controls
MAP_HEADER = ("best (at)", "at fixed", "interval", "gain over CAM", "no masks (at)", "precision", "recall")
MASK_NAMES = {
    "random_walk": "random walk",
    "saliency": "saliency",
    "pixel_adaptive": "pixel-adaptive",
    "crf": "CRF",
}


def mask_name(variant: str) -> str:
    """A variant of pseudo masks for people.

    >>> mask_name("random_walk_crf"), mask_name("none")
    ('+ random walk + CRF', 'maps, cut')
    """
    parts = [name for part, name in MASK_NAMES.items() if part in variant]
    return " ".join(f"+ {name}" for name in parts) or "maps, cut"


def rows(localization: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of localization maps; mIoU in percent."""
    splits = list(next(iter(localization.values()))["split"])
    header = ["maps"]
    for split in splits:
        header += [f"{split}: {MAP_HEADER[0]}", *MAP_HEADER[1:]]
    cells = []
    for values in localization.values():
        cells.append([source_name(values)])
        for split in splits:
            cells[-1] += _cells(values["split"][split])
    return header, cells


def source_name(values: Mapping[str, Any]) -> str:
    """What tables call a source of maps: its label, and a mark for controls."""
    return f"{values['label']} {CONTROL}" if values["control"] else str(values["label"])


def _cells(score: dict[str, Any]) -> list[str]:
    interval = gain = "-"
    if score["miou_at_fixed"] is not None:
        low, high = score["interval_at_fixed"]
        interval = f"{100 * low:.1f}-{100 * high:.1f}"
    if "gain_over_cam" in score:
        below, above = score["gain_interval"]
        gain = f"{100 * score['gain_over_cam']:+.1f} [{100 * below:+.1f}, {100 * above:+.1f}]"
    return [
        _at(score["best_miou"], score["best_threshold"]),
        _at(score["miou_at_fixed"], score["fixed_threshold"]),
        interval,
        gain,
        _at(score["miou_unsupervised"], score["unsupervised_threshold"]),
        f"{100 * score['precision']:.0f}",
        f"{100 * score['recall']:.0f}",
    ]


def _at(miou: float | None, threshold: float | None) -> str:
    return "-" if miou is None or threshold is None else f"{100 * miou:.1f} ({threshold:.2f})"


def print_tables(context: Context, results: dict[str, Any]) -> None:
    """Prints what was measured; one table per split, which fits a terminal."""
    if "localization" in results:
        for split in next(iter(results["localization"].values()))["split"]:
            context.console.print(_split_table(results["localization"], split))
        context.console.print(NOTE, style="dim")
    if has_scored_masks(results):
        context.console.print(mask_table(results["pseudo_masks"]))
    if "segmenter" in results:
        context.console.print(segmenter_table(results["segmenter"]))
    for facts in results.get("methods", {}).values():
        if facts["steps_mean"] > 0:
            context.console.print(adaptation_line(facts))
    if "policy" in results.get("prepared", {}):
        context.console.print(policy_line(results["prepared"]), soft_wrap=True)
    if "skipped" in results:
        context.console.print(skipped_line(results["skipped"]), style="yellow")
    if "bottleneck" in results:
        for table in bottleneck_tables(results["bottleneck"]):
            context.console.print(table)
        context.console.print(network_line(results["bottleneck"]))


NOTE = (
    "mIoU in percent over all classes and background, with 95 % bootstrap intervals over images. At fixed: "
    "at the threshold that is best on the other split, each row its own; no masks: at the one that Otsu's "
    "criterion gives without ground truth. * Controls: RIB towards an absent class, its maps taken for the "
    "true class; norm of the features, a centre prior and the whole image, each with CAM's classes. What a "
    "control gains as well is shape, not class."
)


def _split_table(localization: dict[str, Any], split: str) -> Table:
    one = {name: values | {"split": {split: values["split"][split]}} for name, values in localization.items()}
    header, cells = rows(one)
    images = next(iter(one.values()))["split"][split]["images"]
    table = Table(title=f"Localization maps on {split}, {images} images", title_justify="left")
    for column in header:
        table.add_column(column.removeprefix(f"{split}: "), justify="left" if column == "maps" else "right")
    for row in cells:
        table.add_row(*row, style=None if row[0].endswith(CONTROL) else "bold")
    return table


MASK_HEADER = ("variant", "split", "threshold", "mIoU", "precision", "recall", "false pos.", "false neg.")


def mask_rows(pseudo_masks: dict[str, Any]) -> list[list[str]]:
    """Cells of the table of pseudo masks, in percent."""
    keys = ("miou", "precision", "recall", "false_positive", "false_negative")
    return [
        [
            mask_name(variant),
            split,
            f"{scores['threshold']:.2f}",
            *(f"{100 * values[key]:.1f}" for key in keys),
        ]
        for variant, scores in pseudo_masks["variants"].items()
        for split, values in scores.items()
        if isinstance(values, dict)
    ]


def has_scored_masks(results: Mapping[str, Any]) -> bool:
    """Whether there are pseudo masks, and ground truth to compare them with."""
    return "pseudo_masks" in results and bool(mask_rows(results["pseudo_masks"]))


def mask_table(pseudo_masks: dict[str, Any]) -> Table:
    """A row per variant and split."""
    table = Table(title="Pseudo masks, percent", title_justify="left")
    for column in MASK_HEADER:
        table.add_column(column, justify="left" if column in MASK_HEADER[:2] else "right")
    for row in mask_rows(pseudo_masks):
        table.add_row(*row)
    return table


def policy_line(prepared: Mapping[str, Any]) -> str:
    """One line on how COCO's instances became masks, without which no mIoU can be compared."""
    parts = ", ".join(f"{name}={prepared[name]}" for name in ("crowd", "overlap", "unannotated"))
    return f"Masks and labels by the policy {prepared['policy']} ({parts})."


def skipped_line(skipped: dict[str, dict[str, str]]) -> str:
    """One line on the images that are in no number."""
    parts = ", ".join(f"{len(broken)} of {split}" for split, broken in skipped.items() if broken)
    return (
        f"Skipped because they are broken, and in no number: {parts} (ids and reasons are in results.json)."
    )


def adaptation_line(adaptation: dict[str, Any]) -> str:
    """One line on how the adaptation of a method went."""
    number = adaptation["images"] - adaptation["without_class"]
    stopped = ", ".join(f"{rule.replace('_', ' ')} {count}" for rule, count in adaptation["stopped"].items())
    return (
        f"{adaptation['label']} adapted {number} of {adaptation['images']} images, "
        f"{adaptation['steps_mean']:.1f} steps and {adaptation['seconds_per_image']:.2f} s each; "
        f"stopped early: {stopped}."
    )


Columns = dict[str, list[float | None]]  # title -> IoU of background and each class


def map_columns(localization: dict[str, Any]) -> Columns:
    """The IoU of each source of maps on the first split, at its best threshold."""
    found = {source_name(values): values["split"] for values in localization.values()}
    return {f"{name}, {split}": by[split]["iou"] for name, by in found.items() for split in list(by)[:1]}


def mask_columns(pseudo_masks: dict[str, Any]) -> Columns:
    """The IoU of each variant of pseudo masks on each split."""
    return {
        f"{mask_name(variant)}, {split}": values["iou"]
        for variant, scores in pseudo_masks["variants"].items()
        for split, values in scores.items()
        if isinstance(values, dict)
    }
