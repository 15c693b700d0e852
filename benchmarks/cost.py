"""What RIB costs: operations and memory per image from the network's shapes, and hours of whole data sets.

Nothing is computed: torch counts the operations of tensors without data. Hours are operations divided by a
rate that the hardware sustains; `benchmarks/rib.py` measures it. Images do not depend on each other, so the
time grows linearly with their number and falls linearly with that of the GPUs.

    python benchmarks/cost.py                                          # VOC and COCO, seconds
    python benchmarks/cost.py --tflops 300 --steps 5 --references 10 --json outputs/cost.json
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import show, write_json
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import ribseg
from ribseg.methods.partition import partition

CLASSES = 20
SETS = {"VOC trainaug": (10_582, 20), "COCO train": (82_081, 15)}  # images, reference images per step
GPUS = 1, 8, 64
LOSS_VIEWS = 0, 2, 3  # as `ribseg.RIB` has it
TERA, GIB = 1e12, 2**30


class Recipe(NamedTuple):
    """What the cost depends on."""

    size: tuple[int, int]
    steps: int
    references: int
    crop: int
    scales: Sequence[float]
    loss_views: Sequence[int]


class Counted(NamedTuple):
    """Operations of one (N, 3, h, w) batch: fixed part, adapted part forward, and forward with backward."""

    trunk: int
    forward: int
    learning: int
    saved: int  # bytes that the backward pass keeps


def operations(work: Callable[[], Any]) -> int:
    """Multiplications and additions of a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def count(model: ribseg.Classifier, rows: int, size: tuple[int, int]) -> Counted:
    """Counts a batch of images."""
    parts = partition(model, "published")
    images = torch.empty(rows, 3, *size, device="meta")
    with torch.no_grad():
        trunk = operations(lambda: parts.frozen(images))
        encoded = parts.frozen(images)
        forward = operations(lambda: parts.adapted(encoded))
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no two have one id

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[id(storage)] = storage
        return tensor

    def learn() -> None:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = parts.adapted(encoded).sum()
        loss.backward()

    return Counted(trunk, forward, operations(learn), sum(storage.nbytes() for storage in kept.values()))


def cost(model: ribseg.Classifier, recipe: Recipe) -> dict[str, float]:
    """TFLOP and GiB of one image, for our program and for the plain one that saves nothing."""
    sides = [tuple(round(side * scale) for side in recipe.size) for scale in recipe.scales]
    views = [count(model, 2, side) for side in sides]
    crops = count(model, recipe.references, (recipe.crop, recipe.crop))
    learning = [view for number, view in enumerate(views) if number in recipe.loss_views]
    silent = [view for number, view in enumerate(views) if number not in recipe.loss_views]
    step = sum(v.learning for v in learning) + sum(v.forward for v in silent) + crops.trunk + crops.learning
    last = sum(view.forward for view in views)
    trunks = sum(view.trunk for view in views)
    weights = 4 * sum(weight.numel() for weight in model.parameters())
    return {
        "ours, TFLOP": (trunks + (recipe.steps - 1) * step + last) / TERA,
        "plain, TFLOP": recipe.steps * (trunks + step) / TERA,
        "own views, GiB": sum(view.saved for view in learning) / GIB,
        "references, GiB": crops.saved / GIB,
        # Weights, the copy to go back to, gradients, momentum.
        "weights, GiB": 4 * weights / GIB,
    }


def main() -> None:
    """Counts, prints, projects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[375, 500], help="height and width of an image")
    parser.add_argument("--steps", type=int, default=10, help="K")
    parser.add_argument("--references", type=int, help="B, per step; default: each data set's recipe")
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.5, 1.5, 2.0])
    parser.add_argument("--loss-views", type=int, nargs="+", default=list(LOSS_VIEWS))
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--tflops", type=float, default=300.0, help="TFLOP/s that one GPU sustains")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    with torch.device("meta"):
        model = ribseg.Classifier(options.backbone, CLASSES)
    costs, hours = [], []
    for name, (images, references) in SETS.items():
        recipe = Recipe(
            tuple(options.size),
            options.steps,
            options.references or references,
            options.crop,
            options.scales,
            options.loss_views,
        )
        found = cost(model, recipe)
        seconds = found["ours, TFLOP"] / options.tflops
        costs.append({"recipe": name, "B": recipe.references, **found, "seconds": seconds})
        hours.append(
            {"hours": name, "images": images}
            | {f"{gpus} GPU" + "s" * (gpus > 1): images * seconds / gpus / 3600 for gpus in GPUS}
        )
    height, width = options.size
    show(f"one image of {width} x {height}, K = {options.steps}, {options.tflops:g} TFLOP/s", costs)
    show("whole data sets", hours)
    write_json(options.json, {"per image": costs, "hours": hours})


if __name__ == "__main__":
    main()
