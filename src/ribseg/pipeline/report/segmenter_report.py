"""Tables of the segmenters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ribseg.pipeline.report.table import Columns, TableData, percent
from ribseg.pipeline.stages.chains import segmenter_test_name

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


def segmenter_rows(segmenter: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the table of segmenters, in percent: one per source and split."""
    rows = []
    for values in segmenter.values():
        masks = values["masks"]
        learnt = "-" if masks is None else f"{100 * masks['miou']:.1f} ({masks['split']})"
        published = percent(values["expected"])
        for split, scores in values["split"].items():
            quality = [f"{100 * scores[key]:.1f}" for key in ("miou", "precision", "recall")]
            rows.append([values["label"], learnt, split, str(scores["images"]), *quality, published])
    return rows


def segmenter_table(segmenter: Mapping[str, Any]) -> TableData:
    """The table of segmenters, with a row per source and split."""
    title = "Segmenter, percent, one confusion matrix over all pixels"
    return TableData(title, HEADER, segmenter_rows(segmenter), text=("split",))


def segmenter_columns(segmenter: Mapping[str, Any]) -> Columns:
    """Source and split -> IoU of background and each class."""
    return {name: scores["iou"] for name, scores in segmenter_errors(segmenter).items()}


def segmenter_errors(segmenter: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Source and split -> its scores."""
    return {
        f"{values['label']}, {split}": scores
        for values in segmenter.values()
        for split, scores in values["split"].items()
    }


def pictured_segmentations(results: dict[str, Any], split: str) -> dict[str, Path]:
    """Title -> folder of the segmenters' masks of a split."""
    return {
        f"segmenter ({source})": Path(results["store"][segmenter_test_name(source)]) / split
        for source, values in results.get("segmenter", {}).items()
        if split in values["split"]
    }
