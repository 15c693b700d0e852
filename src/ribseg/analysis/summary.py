"""Mean and standard deviation of the toy experiment over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ribseg.types import PHASES, REGIONS


def summarize_seeds(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds, for "bottleneck" in `results.json`.

    Args:
        records: per seed "before" and "after", each region -> ratios per layer. None for values missing
            because training or adaptation diverged; they are excluded from the means.

    Returns:
        "seeds", "before", "after", "std". The deviation of a single seed is 0; None without values.
    """
    result: dict[str, Any] = {"seeds": len(records)}
    deviation: dict[str, Any] = {}
    for phase in PHASES:
        result[phase], deviation[phase] = {}, {}
        for region in REGIONS:
            columns = zip(*(record[phase][region] for record in records), strict=True)
            known = [[value for value in column if value is not None] for column in columns]
            result[phase][region] = [float(np.mean(v)) if v else None for v in known]
            deviation[phase][region] = [
                float(np.std(v, ddof=1)) if len(v) > 1 else (0.0 if v else None) for v in known
            ]
    return result | {"std": deviation}
