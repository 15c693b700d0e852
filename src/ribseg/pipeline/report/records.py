"""The numbers of a run as flat records, read from the nested content of `results.json`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ribseg.types import PHASES, REGIONS

SCORED = ("localization", "pseudo_masks", "segmenter")  # parts with images of a data set
CONTROL = "*"  # marks the names of controls
# Measure -> the key of its 95 % bootstrap interval, and of the threshold at which it is measured.
INTERVALS = {"miou_at_fixed": "interval_at_fixed", "gain_over_cam": "gain_interval", "gain": "gain_interval"}
THRESHOLDS = {
    "best_miou": "best_threshold",
    "miou_at_fixed": "fixed_threshold",
    "miou_unsupervised": "unsupervised_threshold",
}
ERRORS = {"false_positive_per_class": "false pos.", "false_negative_per_class": "false neg."}
GROUPS = {"by_number_of_classes": "classes", "by_object_size": "size"}  # measure -> key of a group's name
MASK_STEPS = {
    "random_walk": "random walk",
    "attention": "attention",
    "saliency": "saliency",
    "scenes": "saliency by class",
    "pixel_adaptive": "pixel-adaptive",
    "crf": "CRF",
    "segments": "segments",
}
REGION_NAMES = {"discriminative": "digit", "non_discriminative": "mark", "irrelevant": "rest"}


@dataclass(frozen=True)
class Record:
    """One number of a run.

    Attributes:
        part: of `results.json`: "localization", "methods", "pseudo_masks", "segmenter", "bottleneck".
        source: its key there: a source of maps, a variant of masks, what a segmenter learnt from; in the toy
            experiment "before" or "after" RIB.
        label: of the source, in files and figures.
        control: whether the source is a control.
        split: on which it is measured; "" without one.
        measure: key in `results.json`, with "class_iou" for the IoU at the fixed, else the best threshold,
            "miou" for the mIoU there, "false_positive" and "false_negative" for means over the classes, and
            "curve" for the values over all thresholds.
        value: None where it could not be measured.
        interval: 95 % bootstrap interval.
        deviation: standard deviation.
        threshold: at which it is measured; the upper limit of a group of object sizes.
        place: within a measure with several numbers: a class, a group of images, a layer, a step; of a curve
            what is measured over the thresholds.
        number: of images, or seeds, that it is measured on.
        detail: which errors; the split of the masks that a segmenter learnt from.
    """

    part: str
    source: str
    label: str
    control: bool = False
    split: str = ""
    measure: str = ""
    value: float | None = None
    interval: tuple[float, float] | None = None
    deviation: float | None = None
    threshold: float | None = None
    place: str = ""
    number: int | None = None
    detail: str = ""

    @property
    def name(self) -> str:
        """The name of the source in tables: of maps with a mark for controls, of masks with their steps."""
        if self.part == "pseudo_masks":
            return mask_name(self.source)
        return f"{self.label} {CONTROL}" if self.control else self.label


def mask_name(variant: str) -> str:
    """The name of a variant of pseudo masks in tables.

    >>> mask_name("random_walk_crf"), mask_name("none")
    ('+ random walk + CRF', 'maps, cut')
    """
    return " ".join(f"+ {name}" for step, name in MASK_STEPS.items() if step in variant) or "maps, cut"


def records_of(results: Mapping[str, Any], classes: Sequence[str] = ()) -> list[Record]:
    """All numbers of a run that tables and figures show, in the order of `results.json`.

    Args:
        results: content of `results.json`, also of an earlier version, which lacks some measures.
        classes: C names; without them classes are named by their ids.
    """
    labels = ("background", *classes)
    parts = (_localization, _methods, _pseudo_masks, _segmenters, _bottleneck)
    return [record for part in parts for record in part(results, labels)]


def select(records: Sequence[Record], part: str, *measures: str, split: str | None = None) -> list[Record]:
    """The records of a part, with one of the measures, if given, and on a split, if given."""
    return [
        record
        for record in records
        if record.part == part and record.measure in (measures or (record.measure,))
        if split in (None, record.split)
    ]


def splits_of(records: Sequence[Record], part: str) -> list[str]:
    """The splits of a part, in their order; detailed tables show the last one."""
    return list(dict.fromkeys(record.split for record in records if record.part == part))


def series(records: Sequence[Record]) -> dict[str, list[float | None]]:
    """Label -> values in their order, as figures take them."""
    found: dict[str, list[float | None]] = {}
    for record in records:
        found.setdefault(record.label, []).append(record.value)
    return found


def _localization(results: Mapping[str, Any], labels: Sequence[str]) -> Iterator[Record]:
    for source, values in results.get("localization", {}).items():
        label, control = values.get("label", source), bool(values.get("control"))
        for split, scores in values["split"].items():
            fixed = scores.get("miou_at_fixed") is not None
            iou, miou = ("iou_at_fixed", "miou_at_fixed") if fixed else ("iou", "best_miou")
            own = {"class_iou": scores.get(iou), "miou": scores.get(miou)}
            for error in ("false_positive", "false_negative"):
                if f"{error}_per_class" in scores:
                    own[error] = class_mean(scores[f"{error}_per_class"])
            base = Record("localization", source, label, control, split)
            yield from _scores(base, {**scores, **own}, labels)


def class_mean(values: Sequence[float | None]) -> float | None:
    """The mean over the classes that are known, without background; None if none is.

    >>> class_mean([0.9, 0.25, None, 0.75]), class_mean([0.9, None])
    (0.5, None)
    """
    found = [value for value in values[1:] if value is not None]
    return sum(found) / len(found) if found else None


def _methods(results: Mapping[str, Any], labels: Sequence[str]) -> Iterator[Record]:
    for source, facts in results.get("methods", {}).items():
        base = Record("methods", source, facts.get("label", source))
        yield from _scores(base, facts, labels)
        for kind, peak in facts.get("peak_gib", {}).items():
            yield replace(base, measure="peak_gib", value=peak, place=kind)


def _pseudo_masks(results: Mapping[str, Any], labels: Sequence[str]) -> Iterator[Record]:
    for variant, by_split in results.get("pseudo_masks", {}).get("variants", {}).items():
        for split, scores in by_split.items():
            if isinstance(scores, Mapping):  # the threshold stands beside the splits
                base = Record("pseudo_masks", variant, variant, split=split)
                own = {"threshold": by_split.get("threshold"), "class_iou": scores.get("iou")}
                yield from _scores(base, {**scores, **own}, labels)


def _segmenters(results: Mapping[str, Any], labels: Sequence[str]) -> Iterator[Record]:
    for source, values in results.get("segmenter", {}).items():
        masks = values.get("masks")
        base = Record("segmenter", source, values.get("label", source))
        for iteration, miou in (values.get("validation") or {}).items():
            split = next(iter(values["split"]))
            yield replace(base, split=split, measure="validation", value=miou, place=iteration)
        for split, scores in values["split"].items():
            base = replace(base, split=split)
            own = {"class_iou": scores.get("iou"), "published": values.get("expected")}
            yield from _scores(base, {**scores, **own}, labels)
            if masks:
                yield replace(base, measure="masks_miou", value=masks["miou"], detail=masks["split"])


def _bottleneck(results: Mapping[str, Any], labels: Sequence[str]) -> Iterator[Record]:
    found = results.get("bottleneck", {})
    for phase in PHASES:
        for region in REGIONS if phase in found else ():
            base = Record("bottleneck", phase, REGION_NAMES[region], measure="ratio", number=found["seeds"])
            pairs = zip(found[phase][region], found["std"][phase][region], strict=True)
            for layer, (mean, deviation) in enumerate(pairs, start=1):
                yield replace(base, value=mean, deviation=deviation, place=f"G{layer}")


def _scores(base: Record, scores: Mapping[str, Any], labels: Sequence[str]) -> Iterator[Record]:
    """The records of a dictionary of measures: numbers, and lists of them by class, group, or place."""
    base = replace(base, number=scores.get("images"))
    for measure, value in scores.items():
        one = replace(base, measure=measure)
        if value is None:
            continue
        if isinstance(value, int | float):
            interval = scores.get(INTERVALS.get(measure, ""))
            threshold = scores.get(THRESHOLDS.get(measure, ""))
            yield replace(one, value=value, interval=interval, threshold=threshold)
        elif measure in GROUPS:
            for group in value:
                place, number = str(group[GROUPS[measure]]), group["images"]
                up_to = group.get("up_to")
                yield replace(one, value=group["miou"], place=place, number=number, threshold=up_to)
        elif measure == "curve":
            for place in (name for name in value if name != "thresholds"):
                for threshold, number in zip(value["thresholds"], value[place], strict=True):
                    yield replace(one, value=number, threshold=threshold, place=place)
        elif measure == "max_box_acc_v2":
            yield replace(one, value=value["mean"])
            for limit, share in zip(value["limits"], value["per_limit"], strict=True):
                yield replace(one, measure="box_accuracy", value=share, place=f"{limit:g}")
        elif isinstance(value, list) and all(isinstance(number, int | float | None) for number in value):
            if measure in ERRORS:
                one = replace(one, measure="errors_per_class", detail=ERRORS[measure])
            for place, number in zip(_places(measure, len(value), labels), value, strict=True):
                yield replace(one, value=number, place=place)


def _places(measure: str, number: int, labels: Sequence[str]) -> Sequence[str]:
    """The names of the numbers in a list: tenths of the distance, classes, or steps."""
    if measure == "coverage":
        return [f"{10 * tenth}-{10 * tenth + 10}" for tenth in range(number)]
    by_class = measure == "class_iou" or measure.endswith("_per_class")
    return labels if by_class and len(labels) == number else list(map(str, range(number)))
