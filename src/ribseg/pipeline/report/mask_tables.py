"""Tables of pseudo masks."""

from collections.abc import Mapping
from typing import Any

from ribseg.pipeline.report.table import Columns, TableData, group_table, percent, signed_interval

GAIN_NOTE = "Gain: mIoU points over the first variant, with its paired 95 % bootstrap interval over images."
MASK_HEADER = ("variant", "split", "threshold", "mIoU", "precision", "recall", "false\npos.", "false\nneg.")
MASK_NAMES = {
    "random_walk": "random walk",
    "attention": "attention",
    "saliency": "saliency",
    "pixel_adaptive": "pixel-adaptive",
    "crf": "CRF",
    "segments": "segments",
}


def mask_name(variant: str) -> str:
    """The name of a variant of pseudo masks in tables.

    >>> mask_name("random_walk_crf"), mask_name("none")
    ('+ random walk + CRF', 'maps, cut')
    """
    parts = [name for part, name in MASK_NAMES.items() if part in variant]
    return " ".join(f"+ {name}" for name in parts) or "maps, cut"


def mask_rows(pseudo_masks: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the table of pseudo masks, in percent, with as many cells as `mask_header` has."""
    keys = ("miou", "precision", "recall", "false_positive", "false_negative")
    extra = mask_header(pseudo_masks)[len(MASK_HEADER) :]
    cells = {"gain": _gain, "boundary F": lambda values: percent(values.get("boundary_f"))}
    return [
        [
            mask_name(variant),
            split,
            f"{scores['threshold']:.2f}",
            *(f"{100 * values[key]:.1f}" for key in keys),
            *(cells[name](values) for name in extra),
        ]
        for variant, scores in pseudo_masks["variants"].items()
        for split, values in scores.items()
        if isinstance(values, dict)
    ]


def mask_header(pseudo_masks: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of the table of pseudo masks: gains with several variants, boundaries where measured."""
    scored = [
        v for scores in pseudo_masks["variants"].values() for v in scores.values() if isinstance(v, dict)
    ]
    gain = ("gain",) if any("gain" in values for values in scored) else ()
    boundary = ("boundary F",) if any("boundary_f" in values for values in scored) else ()
    return (*MASK_HEADER, *gain, *boundary)


def _gain(values: Mapping[str, Any]) -> str:
    if "gain" not in values:
        return "-"
    return f"{100 * values['gain']:+.1f} {signed_interval(values['gain_interval'])}"


def has_scored_masks(results: Mapping[str, Any]) -> bool:
    """Whether there are pseudo masks with scores."""
    return "pseudo_masks" in results and bool(mask_rows(results["pseudo_masks"]))


def mask_table(pseudo_masks: Mapping[str, Any]) -> TableData:
    """The table of pseudo masks, with a row per variant and split."""
    header = mask_header(pseudo_masks)
    note = GAIN_NOTE if "gain" in header else ""
    return TableData("Pseudo masks, percent", header, mask_rows(pseudo_masks), note, ("variant", "split"))


def mask_columns(pseudo_masks: Mapping[str, Any]) -> Columns:
    """Variant and split -> IoU per class of the pseudo masks."""
    return {
        f"{mask_name(variant)}, {split}": values["iou"]
        for variant, scores in pseudo_masks["variants"].items()
        for split, values in scores.items()
        if isinstance(values, dict)
    }


def mask_errors(pseudo_masks: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Variant -> its scores on the last split."""
    found: dict[str, Mapping[str, Any]] = {}
    for variant, scores in pseudo_masks["variants"].items():
        by_split = [values for values in scores.values() if isinstance(values, dict)]
        found[mask_name(variant)] = by_split[-1]
    return found


def mask_group_tables(pseudo_masks: Mapping[str, Any]) -> list[TableData]:
    """The tables of the mIoU of pseudo masks by number of classes and by object size, on the last split."""
    found = mask_errors(pseudo_masks)
    groups = {
        "by_number_of_classes": ("classes", "mIoU by number of classes in the image"),
        "by_object_size": ("size", "mIoU by object size"),
    }
    first = next(iter(found.values()))
    return [
        group_table(found, key, name, title, "variant")
        for key, (name, title) in groups.items()
        if first.get(key)
    ]
