"""Times RIB with EfficientNet-Lite0 on a CPU: by what learns, precision, and depthwise gradients.

OMP_NUM_THREADS=1 python benchmarks/small_networks.py
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from measuring import show, write_json

import ribseg

SCALES = (1.0, 0.5, 1.5)


def classifier(own_gradients: bool) -> ribseg.Classifier:
    """The same random weights, with and without our gradients of depthwise convolutions."""
    torch.manual_seed(0)
    with nullcontext() if own_gradients else mock.patch("ribseg.models.backbone.replace_depthwise"):
        return ribseg.Classifier("tf_efficientnet_lite0", num_classes=20).eval()


def views(height: int, width: int) -> list[torch.Tensor]:
    """An image of noise and its mirror image at each scale."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(round(height * scale), round(width * scale)) for scale in SCALES]
    return [torch.randn(2, 3, *size, generator=generator) for size in sizes]


def seconds(rib: ribseg.RIB, images: Sequence[torch.Tensor], precision: str, repeats: int) -> float:
    """The fastest of some adaptations; the first one is not counted."""
    labels = torch.eye(20)[3]
    taken = []
    half = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with half:
            rib(images, labels)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    images, rows = views(*args.size), []
    for trainable in ("head", "layer4", "published"):
        for precision in ("fp32", "bf16"):
            found = {}
            for name, own in (("oneDNN's, s", False), ("ours, s", True)):
                rib = ribseg.RIB(
                    classifier(own), steps=args.steps, lr=1e-8, margin=None, area_limit=None,
                    trainable=trainable, loss_views=(0, 1, 2), preset="fixed",
                )  # fmt: skip
                found[name] = seconds(rib, images, precision, args.repeats)
            before, after = found.values()
            rows.append({"learns": trainable, "precision": precision, **found, "ratio": before / after})
    height, width = args.size
    show(f"RIB, EfficientNet-Lite0, {height} x {width}, K = {args.steps}, seconds an image", rows)
    write_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
