"""Tables of the segmenters."""

from pathlib import Path
from typing import Any

from rich.table import Table

from ribseg.pipeline.stages.chains import tested_name

HEADER = (
    "segmenter trained on",
    "masks' mIoU",
    "split",
    "images",
    "mIoU",
    "precision",
    "recall",
    "published",
)
LEFT = (HEADER[0], "split")


def segmenter_rows(segmenter: dict[str, Any]) -> list[list[str]]:
    """Cells of the table, in percent: a row per source and split."""
    rows = []
    for values in segmenter.values():
        masks = values["masks"]
        learnt = "-" if masks is None else f"{100 * masks['miou']:.1f} ({masks['split']})"
        published = "-" if values["expected"] is None else f"{100 * values['expected']:.1f}"
        for split, scores in values["split"].items():
            quality = [f"{100 * scores[key]:.1f}" for key in ("miou", "precision", "recall")]
            rows.append([values["label"], learnt, split, str(scores["images"]), *quality, published])
    return rows


def segmenter_table(segmenter: dict[str, Any]) -> Table:
    """What the terminal shows."""
    table = Table(title="Segmenter, percent, one confusion matrix over all pixels", title_justify="left")
    for column in HEADER:
        table.add_column(column, justify="left" if column in LEFT else "right")
    for row in segmenter_rows(segmenter):
        table.add_row(*row)
    return table


def segmenter_columns(segmenter: dict[str, Any]) -> dict[str, list[float | None]]:
    """The IoU of background and each class by source and split."""
    return {
        f"{values['label']}, {split}": scores["iou"]
        for values in segmenter.values()
        for split, scores in values["split"].items()
    }


def pictured_segmentations(results: dict[str, Any], split: str) -> dict[str, Path]:
    """Title and folder of the segmenters' masks of a split."""
    return {
        f"segmenter ({source})": Path(results["store"][tested_name(source)]) / split
        for source, values in results.get("segmenter", {}).items()
        if split in values["split"]
    }
