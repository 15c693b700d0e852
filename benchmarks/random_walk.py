"""Measures the random walk against a dense program: seconds, memory, and how far apart the results are.

The dense program builds the (h w) x (h w) transition matrix in float32 and squares it eight times, as the
published one does. Both run in this process, one after the other, on one thread, with denormals flushed;
the walk comes first, so that its peak of memory is its own.

    python benchmarks/random_walk.py                                # 64 x 64, about 15 seconds
    python benchmarks/random_walk.py --sizes 40x52 94x125 --no-dense --json outputs/random_walk.json
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ribseg.functional.irn import line_points, neighbour_offsets
from ribseg.functional.random_walk import random_walk

SQUARINGS = 8


def dense_walk(maps: Tensor, boundary: Tensor, radius: int = 5, beta: float = 10.0) -> Tensor:
    """`(maps * (1 - boundary)) @ T^256` with T as a dense float32 matrix."""
    height, width = boundary.shape
    affinity = torch.eye(height * width)
    index = torch.arange(height * width).view(height, width)
    for dy, dx in neighbour_offsets(radius):
        rows, left, right = height - dy, max(0, -dx), width - max(0, dx)
        lines = [boundary[y : y + rows, left + x : right + x].flatten() for y, x in line_points((dy, dx))]
        first = index[:rows, left:right].flatten()
        value = 1 - torch.stack(lines).amax(0)
        affinity[first, first + dy * width + dx] = value
        affinity[first + dy * width + dx, first] = value
    affinity = affinity**beta
    transition = affinity / affinity.sum(0, keepdim=True)
    del affinity
    for _ in range(SQUARINGS):
        transition = transition @ transition
    return ((maps * (1 - boundary)).flatten(1) @ transition).view(maps.shape)


def example(height: int, width: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Maps and a boundary with noise and walls."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(classes, height, width, generator=generator)
    boundary = torch.rand(height, width, generator=generator) ** 3
    boundary[height // 2], boundary[:, width // 3] = 0.97, 1.0
    return maps, boundary


def seconds(program: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """The median of several runs, and the result."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = program()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), result


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(height: int, width: int, classes: int, repeats: int, dense: bool) -> dict[str, Any]:
    """One size; everything in seconds, MiB and units of the maps."""
    maps, boundary = example(height, width, classes, seed=0)
    before = peak_mib()
    walk, walked = seconds(lambda: random_walk(maps, boundary), repeats)
    found: dict[str, Any] = {"size": f"{height}x{width}", "classes": classes, "walk_seconds": walk}
    found["walk_peak_mib_above_start"] = peak_mib() - before
    if dense:
        found["dense_seconds"], expected = seconds(lambda: dense_walk(maps, boundary), 1)
        found["ratio"] = found["dense_seconds"] / walk
        found["largest_difference"] = (walked - expected).abs().max().item()
    return found


def main() -> None:
    """Measures the sizes in ascending order and prints a table, and JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["64x64"], help="height x width, e.g. 64x64")
    parser.add_argument("--classes", type=int, default=2, help="maps per image")
    parser.add_argument("--repeats", type=int, default=5, help="runs of the walk; the median counts")
    parser.add_argument("--no-dense", action="store_true", help="leave the dense program out")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    sizes = sorted(tuple(map(int, size.split("x"))) for size in arguments.sizes)
    random_walk(torch.rand(1, 8, 8), torch.rand(8, 8))  # loads what the first call loads
    found = [measure(h, w, arguments.classes, arguments.repeats, not arguments.no_dense) for h, w in sizes]
    table = Table(title=f"random walk, 256 steps, {arguments.classes} maps, one thread, denormals flushed")
    for name in found[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in found:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
