"""What a run found, and what stands beside its tables, in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ribseg.pipeline.report.records import Record, select, splits_of
from ribseg.pipeline.report.table import percent, signed_interval

BASELINE = "cam"  # the method with which others are compared


def answers(records: Sequence[Record]) -> list[str]:
    """Sentences with what the run found: differences with intervals, controls, segmenters."""
    return [*_maps(records), *_segmenters(records)]


def _maps(records: Sequence[Record]) -> Iterator[str]:
    split = next(reversed(splits_of(records, "localization")), None)
    scores = select(records, "localization", "miou", split=split)
    gains = {one.source: one for one in select(records, "localization", "gain_over_cam", split=split)}
    methods = [one for one in scores if not one.control]
    others = [one for one in methods if one.source != BASELINE]
    if others and len(others) < len(methods):
        (base,) = (one for one in methods if one.source == BASELINE)
        yield from (_gain(one, base, gains.get(one.source)) for one in others)
    elif methods:
        parts = ", ".join(f"{one.label} {percent(one.value)}" for one in methods)
        yield f"mIoU on {split} ({methods[0].number} images): {parts}."
    controls = [
        f"{one.label} {percent(one.value)}"
        + (f" ({_points(gains[one.source])})" if one.source in gains else "")
        for one in scores
        if one.control
    ]
    if controls:
        yield f"Controls: {', '.join(controls)}. What a control gains as well is shape, not class."


def _gain(score: Record, base: Record, gain: Record | None) -> str:
    begin = (
        f"{score.label} reaches {percent(score.value)} mIoU on {score.split} ({score.number} images), "
        f"{base.label} {percent(base.value)}"
    )
    if gain is None or gain.interval is None:
        return f"{begin}, each at its best threshold; without a fixed threshold there is no interval."
    interval = signed_interval(gain.interval)
    return f"{begin}: {_points(gain)}, 95 % interval {interval}.{remark(gain.interval)}"


def _points(gain: Record) -> str:
    return f"{100 * (gain.value or 0):+.1f}"


def remark(bounds: Sequence[float]) -> str:
    """A sentence for an interval of a difference that includes 0, after a space; "" for others.

    >>> remark((-0.1, 0.2)), remark((0.1, 0.2))
    (' The interval includes 0, so no difference is shown.', '')
    """
    return " The interval includes 0, so no difference is shown." if bounds[0] <= 0 <= bounds[1] else ""


def _segmenters(records: Sequence[Record]) -> Iterator[str]:
    parts: dict[str, list[str]] = {}
    for one in select(records, "segmenter", "miou"):
        found = f"{percent(one.value)} mIoU on {one.split} ({one.number} images)"
        parts.setdefault(one.label, []).append(found)
    for label, found_on in parts.items():
        yield f"The segmenter trained on {label} reaches {', '.join(found_on)}."


def result_lines(results: Mapping[str, Any]) -> list[str]:
    """The lines that accompany the tables: on adaptations, COCO's policy, and skipped images."""
    lines = [_adaptation(facts) for facts in results.get("methods", {}).values() if facts["steps_mean"] > 0]
    lines += [policy_line(results["prepared"])] if "policy" in results.get("prepared", {}) else []
    skipped = results.get("skipped")
    if skipped:
        parts = ", ".join(f"{len(broken)} of {split}" for split, broken in skipped.items() if broken)
        where = "(ids and reasons are in results.json)"
        lines.append(f"Skipped because they are broken, not in any result: {parts} {where}.")
    return lines


def _adaptation(facts: Mapping[str, Any]) -> str:
    number = facts["images"] - facts["without_class"]
    stopped = ", ".join(f"{rule.replace('_', ' ')} {count}" for rule, count in facts["stopped"].items())
    return (
        f"{facts['label']} adapted {number} of {facts['images']} images, "
        f"{facts['steps_mean']:.1f} steps and {facts['seconds_per_image']:.2f} s each; "
        f"stopped early: {stopped}."
    )


def policy_line(prepared: Mapping[str, Any]) -> str:
    """A line about the policy for COCO's masks, on which every mIoU depends."""
    parts = ", ".join(f"{name}={prepared[name]}" for name in ("crowd", "overlap", "unannotated"))
    number = f"; {prepared['crowds']} of {prepared['objects']} objects are crowds"
    crowds = number if "crowds" in prepared else ""
    return f"Masks and labels by the policy {prepared['policy']} ({parts}){crowds}."


def network_line(result: Mapping[str, Any]) -> str:
    """A line about the networks of the toy experiment and their adaptation."""
    seeds = result["by_seed"]
    accuracy = "-" if result["accuracy"] is None else f"{100 * result['accuracy']:.1f} %"
    steps = np.mean([one["steps_mean"] for one in seeds])
    broken = sum(one["stopped"].get("not_finite", 0) for one in seeds)
    return (
        f"Networks: {result['seeds']}, images: {sum(one['images'] for one in seeds)}; accuracy "
        f"{accuracy}, diverged {result['diverged']}; last activation saturated for "
        f"{100 * result['saturation']:.0f} % of the images; RIB took {steps:.1f} steps, not finite {broken}."
    )
