"""What a run found, in a few sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from ribseg.pipeline.report.table import signed_interval
from ribseg.pipeline.report.tables import last_split

BASELINE = "cam"  # the method with which others are compared


def answers(results: Mapping[str, Any]) -> list[str]:
    """Sentences with what the run found: differences with intervals, controls, segmenters."""
    found = results.get("localization", {})
    texts = [*_gains(found), *_controls(found)] if found else []
    return [*texts, *_segmenters(results.get("segmenter", {}))]


def _gains(found: Mapping[str, Any]) -> list[str]:
    split = last_split(found)
    methods = {name: values for name, values in found.items() if not values["control"]}
    base = methods.get(BASELINE)
    scores = {name: values["split"][split] for name, values in methods.items()}
    images = next(iter(scores.values()))["images"]
    if base is None or len(methods) == 1:
        parts = ", ".join(f"{methods[name]['label']} {_best(score)}" for name, score in scores.items())
        return [f"mIoU on {split} ({images} images): {parts}."]
    return [
        _gain(values["label"], base["label"], scores[name], scores[BASELINE], f"{split} ({images} images)")
        for name, values in methods.items()
        if name != BASELINE
    ]


def _gain(label: str, base_label: str, score: Mapping[str, Any], base: Mapping[str, Any], where: str) -> str:
    begin = f"{label} reaches {_best(score)} mIoU on {where}, {base_label} {_best(base)}"
    if score.get("gain_interval") is None:
        return f"{begin}, each at its best threshold; without a fixed threshold there is no interval."
    bounds = score["gain_interval"]
    text = f"{begin}: {100 * score['gain_over_cam']:+.1f}, 95 % interval {signed_interval(bounds)}"
    return f"{text}.{remark(bounds)}"


def remark(bounds: Sequence[float]) -> str:
    """A sentence for an interval of a difference that includes 0, after a space; "" for others.

    >>> remark((-0.1, 0.2)), remark((0.1, 0.2))
    (' The interval includes 0, so no difference is shown.', '')
    """
    return " The interval includes 0, so no difference is shown." if bounds[0] <= 0 <= bounds[1] else ""


def _controls(found: Mapping[str, Any]) -> list[str]:
    split = last_split(found)
    parts = []
    for values in found.values():
        score = values["split"][split]
        if values["control"]:
            gain = score.get("gain_over_cam")
            parts.append(
                f"{values['label']} {_best(score)}" + ("" if gain is None else f" ({100 * gain:+.1f})")
            )
    return (
        [f"Controls: {', '.join(parts)}. What a control gains as well is shape, not class."] if parts else []
    )


def _segmenters(segmenters: Mapping[str, Any]) -> list[str]:
    texts = []
    for values in segmenters.values():
        parts = [
            f"{100 * scores['miou']:.1f} mIoU on {split} ({scores['images']} images)"
            for split, scores in values["split"].items()
        ]
        texts.append(f"The segmenter trained on {values['label']} reaches {', '.join(parts)}.")
    return texts


def _best(score: Mapping[str, Any]) -> str:
    """The mIoU at the fixed threshold, else at the best one, in percent."""
    value = score["best_miou"] if score["miou_at_fixed"] is None else score["miou_at_fixed"]
    return f"{100 * value:.1f}"
