"""Mean and deviation over seeds of the toy experiment."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ribseg.data.demo.digits import REGIONS

PHASES = ("before", "after")


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
