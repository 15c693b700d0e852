"""Mean and deviation over seeds of the toy experiment, and its targets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ribseg.data.demo.digits import REGIONS

PHASES = ("before", "after")
LAST_CONV, FINAL = -2, -1
"""Places among the layers: the last convolution, and the class prediction."""
MET: dict[str, tuple[str, float]] = {
    "background_before": ("below", 0.1),
    "distance_at_last_conv": ("below", 0.15),
    "collapse_at_final": ("below", 0.45),
    "recovery_at_final": ("above", 1.5),
    "background_after": ("below", 0.15),
}
"""What the experiment should show, as it was fixed before measuring; see `targets`."""


def summarize_seeds(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds, as "bottleneck" in `results.json`.

    Args:
        records: per seed "before" and "after", each region -> ratios per layer. None stands for a value that
            is not there (training or adaptation diverged); means are over the others.

    Returns:
        "seeds", "before", "after", "std". The deviation of a single seed is 0; None without any value.
    """
    result: dict[str, Any] = {"seeds": len(records)}
    deviation: dict[str, Any] = {}
    for phase in PHASES:
        result[phase], deviation[phase] = {}, {}
        for region in REGIONS:
            columns = zip(*(record[phase][region] for record in records), strict=True)
            there = [[value for value in column if value is not None] for column in columns]
            result[phase][region] = [float(np.mean(v)) if v else None for v in there]
            deviation[phase][region] = [
                float(np.std(v, ddof=1)) if len(v) > 1 else (0.0 if v else None) for v in there
            ]
    return result | {"std": deviation}


def targets(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How far the argument is seen: each with "value", "below" or "above" (the bound), and "met".

    - background_before: the largest ratio of the rest, from the second layer on.
    - distance_at_last_conv: between digit and mark at the last convolution.
    - collapse_at_final: the mark's ratio at the class prediction, over that at the last convolution.
    - recovery_at_final: the mark's ratio at the class prediction after RIB, over that before.
    - background_after: the ratio of the rest at the class prediction, after RIB.

    Args:
        summary: of `summarize_seeds`.
    """
    before, after = summary["before"], summary["after"]
    digit, mark, rest = (np.array(before[region], dtype=float) for region in REGIONS)  # None becomes nan
    mark_after, rest_after = (np.array(after[region], dtype=float)[FINAL] for region in REGIONS[1:])
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {
            "background_before": rest[1:].max(),
            "distance_at_last_conv": abs(mark[LAST_CONV] - digit[LAST_CONV]),
            "collapse_at_final": mark[FINAL] / mark[LAST_CONV],
            "recovery_at_final": mark_after / mark[FINAL],
            "background_after": rest_after,
        }
    found = {}
    for name, (side, bound) in MET.items():
        value = float(values[name])
        met = value < bound if side == "below" else value >= bound
        found[name] = {"value": value if np.isfinite(value) else None, side: bound, "met": bool(met)}
    return found
