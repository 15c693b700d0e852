"""Times the threshold sweep: all background scores in one pass over the maps, against one pass for each.

python benchmarks/evaluate.py                        # 12 images of 375 x 500, 100 scores, under a minute
python benchmarks/evaluate.py --images 40 --thresholds 1000 --json outputs/evaluate.json
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measuring import show, write_json
from torch import Tensor

import ribseg
from ribseg.functional import argmax_labels, normalize
from ribseg.metrics import MaskConfusion


class Example(NamedTuple):
    """Maps (K, H, W), their classes (K,), and the mask (H, W)."""

    maps: Tensor
    classes: Tensor
    target: Tensor


def example(size: tuple[int, int], present: int, num_classes: int, seed: int) -> Example:
    """Smooth maps, and a mask that agrees with them in part."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, present, 12, 16, generator=generator)
    maps = normalize(F.interpolate(coarse, size, mode="bicubic")[0].relu())
    classes = torch.randperm(num_classes, generator=generator)[:present].sort().values
    noisy = normalize((maps + 0.2 * torch.rand(maps.shape, generator=generator)).relu())
    target = argmax_labels(noisy, classes, 0.6)
    target[torch.rand(size, generator=generator) < 0.05] = 255
    return Example(maps, classes, target)


def one_by_one(examples: list[Example], thresholds: Tensor, num_classes: int) -> Tensor:
    """(T,) mIoU: for each background score a pass over all maps."""
    found = []
    for threshold in thresholds:
        confusion = MaskConfusion(num_classes)
        for maps, classes, target in examples:
            confusion.update(argmax_labels(maps, classes, float(threshold)), target)
        found.append(confusion.compute().miou)
    return torch.stack(found)


def one_pass(examples: list[Example], thresholds: Tensor, num_classes: int) -> Tensor:
    """(T,) mIoU from `ribseg.ThresholdSweep`."""
    sweep = ribseg.ThresholdSweep(num_classes, thresholds)
    for maps, classes, target in examples:
        sweep.update(maps, classes, target)
    return sweep.compute()["miou"]


def main() -> None:
    """Measures, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--size", type=int, nargs=2, default=[375, 500], help="height and width")
    parser.add_argument("--present", type=int, default=2, help="classes per image")
    parser.add_argument("--classes", type=int, default=20, help="classes of the data set")
    parser.add_argument("--thresholds", type=int, default=100)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    size, seeds = tuple(options.size), range(options.images)
    examples = [example(size, options.present, options.classes, seed) for seed in seeds]
    thresholds = torch.linspace(0, 1, options.thresholds)
    one_pass(examples[:1], thresholds, options.classes)  # loads what the first call loads
    seconds, results = [], []
    for program in (one_pass, one_by_one):
        start = time.perf_counter()
        results.append(program(examples, thresholds, options.classes))
        seconds.append(time.perf_counter() - start)
    found = {
        "images": options.images,
        "thresholds": options.thresholds,
        "one pass, s": seconds[0],
        "one by one, s": seconds[1],
        "ratio": seconds[1] / seconds[0],
        "equal": torch.equal(*results),
    }
    show("threshold sweep", [found])
    write_json(options.json, found)


if __name__ == "__main__":
    main()
