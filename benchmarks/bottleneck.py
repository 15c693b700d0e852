"""What docs/bottleneck.md says should be seen in the toy experiment, with the bounds fixed before measuring.

python train.py experiment=toy_bottleneck run=[bottleneck] hydra.run.dir=outputs/toy
python benchmarks/bottleneck.py outputs/toy/results.json
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REGIONS = ("discriminative", "non_discriminative", "irrelevant")  # digit, mark, rest
# Place in `measured` -> what it is, and its bound; the recovery is to be at least, the others below theirs.
BOUNDS = (
    ("rest before RIB, largest from the second layer on", "<", 0.1),
    ("distance of mark and digit at the last convolution", "<", 0.15),
    ("mark before RIB: class prediction over last convolution", "<", 0.45),
    ("mark at the class prediction: after RIB over before", ">=", 1.5),
    ("rest after RIB at the class prediction", "<", 0.15),
)


def measured(result: Mapping[str, Any]) -> list[float]:
    """The values that BOUNDS are for, from "bottleneck" of `results.json`; nan where a training diverged."""
    digit, mark, rest = (floats(result["before"][region]) for region in REGIONS)
    _, mark_after, rest_after = (floats(result["after"][region])[-1] for region in REGIONS)
    return [
        max(rest[1:]),
        abs(mark[-2] - digit[-2]),
        mark[-1] / mark[-2] if mark[-2] else math.nan,
        mark_after / mark[-1] if mark[-1] else math.nan,
        rest_after,
    ]


def floats(values: list[float | None]) -> list[float]:
    """The values, with nan for None."""
    return [math.nan if value is None else value for value in values]


def main() -> None:
    """Prints the table of docs/bottleneck.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of the run")
    result = json.loads(parser.parse_args().results.read_text())["bottleneck"]
    print("| what should be seen (fixed before measuring) | bound | measured | met |\n|---|---|---|---|")
    for (name, side, bound), value in zip(BOUNDS, measured(result), strict=True):
        met = value < bound if side == "<" else value >= bound
        print(f"| {name} | {side} {bound:g} | {value:.2f} | {'yes' if met else 'no'} |")


if __name__ == "__main__":
    main()
