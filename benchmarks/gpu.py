r"""Everything that is to be known of a GPU, in one command of 9 minutes at most.

Needed on the machine: torch and torchvision for its GPU, and `pip install -e ".[crf]"` of this repository
(wheels but for pydensecrf2, without which the CRF of the CPU is torch's, too). Nothing is downloaded: weights
are random, images are made. What is left out for want of time is said.

    python benchmarks/gpu.py --json benchmarks/gpu.json
    python benchmarks/gpu.py --small --device cpu           # the same program in minutes, to try it

Rows: how far maps of RIB (ResNet-50, small images) are from the CPU's single precision; RIB with the
published recipe (500 x 375, B = 20, K = 10), from files to files; the plain program; CAM, AdvCAM and CLIP-ES;
the dense CRF; hours for VOC's 10,582 and COCO's 82,081 training images at these rates, with VOC's B.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cost
import rib
import timm
import torch
from measuring import Clock, circumstances, make_tree, show, write_json
from safetensors.torch import save_file
from torch import Tensor

import ribseg
from ribseg.data.io.maps import load_maps, map_path
from ribseg.methods.advcam import AdvCAM
from ribseg.methods.cam import cam
from ribseg.methods.clip_es import OPENAI, ClipES
from ribseg.models.text import TextEmbeddings
from ribseg.modules.data_module import WSSSDataModule

SMALL = ["--size", "64", "96", "--crop", "64", "--resize-long", "64", "96", "--references", "2"]
TINY = ["--backbone", "resnet18", "--steps", "2", "--images", "1"]
PRECISIONS = {"single": "32-true", "single, TF32": "32-true", "bfloat16": "bf16-mixed"}


@dataclass
class Findings:
    """Rows of the table, and what was left out.

    Attributes:
        device: that is measured.
        end: time at which nothing new begins, of `time.monotonic`.
    """

    device: str
    end: float
    rows: list[dict[str, str]] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, result: str, unit: str = "") -> None:
        """Adds a row and prints it, so that a run that is ended early has said something."""
        self.rows.append({"what": what, "result": result, "unit": unit})
        print(f"{what}: {result} {unit}", flush=True)

    def part(self, name: str, measure: Callable[["Findings"], Any]) -> None:
        """Measures a part if there is time; one that fails is said, and the others go on."""
        if time.monotonic() > self.end:
            self.add(name, "left out", "no time")
            return
        try:
            self.raw[name] = measure(self)
        except (RuntimeError, ValueError) as error:  # e.g. torch.OutOfMemoryError, a compiler that fails
            self.raw[name] = {"failed": str(error)}
            self.add(name, "failed", str(error).partition("\n")[0])


def equality(found: Findings, small: bool) -> dict[str, float]:
    """The largest differences of maps in [0, 1] from those of the CPU in single precision."""
    differences = {}
    torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        common = [*SMALL, "--no-parts", *(TINY if small else ["--steps", "3", "--images", "3"])]
        options = rib.parse([*common, "--device", "cpu"])
        root = make_tree(folder / "data", 12, tuple(options.size))
        sizes = {"crop_size": options.crop, "resize_long": options.resize_long, "num_workers": 0}
        data = WSSSDataModule(root, eval_splits=[], **sizes)
        state = rib.example_weights(options.backbone)
        rib.our_stage(data, state, folder / "reference", options)
        for name, precision in PRECISIONS.items():
            torch.backends.cudnn.allow_tf32 = "TF32" in name
            options = rib.parse([*common, "--device", found.device, "--precision", precision])
            rib.our_stage(data, state, folder / name, options)
            largest = max(
                float((full(folder / name, image) - full(folder / "reference", image)).abs().max())
                for image in data.train.ids[: options.images]
            )
            differences[name] = largest
            found.add(f"largest difference of RIB's maps from the CPU's, {name}", f"{largest:.1e}")
    torch.backends.cudnn.allow_tf32 = True
    return differences


def full(folder: Path, image_id: str) -> Tensor:
    """Full-size maps of an image."""
    maps = load_maps(map_path(folder, image_id))
    assert maps.full is not None
    return maps.full


def recipe(extra: Sequence[str], small: bool, plain: bool) -> Callable[[Findings], dict[str, Any]]:
    """RIB from files to files, at the sizes of the published recipe; `plain` times the plain program, too."""

    def measure(found: Findings) -> dict[str, Any]:
        sizes = [*SMALL, *TINY] if small else ["--published", "--images", "12"]
        common = [
            "--list",
            "60",
            "--workers",
            "4",
            "--no-parts",
            "--plain-images",
            "2",
            "--device",
            found.device,
        ]
        options = rib.parse([*sizes, *common, *extra, *([] if plain else ["--no-plain"])])
        one = rib.measured(options)
        name, whole = f"RIB {' '.join(extra)}".replace("--precision ", "").strip(), one["whole"]
        found.add(name, f"{one['ours']['all']:.3g}", "s an image")
        found.add(f"{name}, inside the steps", f"{whole['network, TFLOP/s']:.3g}", "TFLOP/s")
        found.add(f"{name}, matrix products", f"{whole['matrix product, TFLOP/s']:.3g}", "TFLOP/s")
        if "largest memory, GiB" in whole:
            found.add(f"{name}, peak memory", f"{whole['largest memory, GiB']:.3g}", "GiB")
        if plain:
            found.add("plain program, single precision", f"{one['plain']['all']:.3g}", "s an image")
        for data, (images, _) in cost.SETS.items():
            hours = images * one["ours"]["all"] / 3600
            found.add(f"{name}, projected for {data}", f"{hours:.3g}", "hours")
        return one

    return measure


def methods(small: bool) -> Callable[[Findings], dict[str, float]]:
    """Seconds an image of methods beside RIB, from views on the device to maps."""

    def measure(found: Findings) -> dict[str, float]:
        height, width = (64, 96) if small else (375, 500)
        views = [
            torch.randn(2, 3, round(height * scale), round(width * scale), device=found.device)
            for scale in (1.0, 0.5, 1.5, 2.0)
        ]
        labels = torch.zeros(20, device=found.device)
        labels[[3, 7]] = 1
        model = ribseg.Classifier("resnet50")
        model.load_state_dict(rib.example_weights("resnet50"))
        model = model.to(found.device).eval()
        rows = torch.randn(20, 512)
        text = TextEmbeddings(
            tuple(f"class {number}" for number in range(20)), rows, ("sky",), torch.randn(1, 512)
        )
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "tower.safetensors"
            save_file(timm.create_model(OPENAI, pretrained=False).state_dict(), file)
            clip = ClipES(text=text, pretrained=False, weights=file)
        clip.network.to(found.device)
        called = {
            "CAM": lambda: cam(model, views, labels),
            "AdvCAM": lambda: AdvCAM(model, steps=2 if small else 27)(views=views, labels=labels),
            "CLIP-ES": lambda: clip(views=views, labels=labels),
        }
        return {name: timed(name, call, found) for name, call in called.items()}

    return measure


def crf(small: bool) -> Callable[[Findings], dict[str, float]]:
    """Seconds of the dense CRF for an image of 21 classes, on the device and on one core."""

    def measure(found: Findings) -> dict[str, float]:
        height, width = (64, 96) if small else (375, 500)
        image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
        probabilities = torch.rand(21, height, width).softmax(0)
        on_device = probabilities.to(found.device)
        called = {
            "dense CRF, torch, on the device": lambda: ribseg.functional.dense_crf(
                image, on_device, backend="torch"
            ),
            "dense CRF, on the CPU": lambda: ribseg.functional.dense_crf(image, probabilities),
        }
        return {name: timed(name, call, found) for name, call in called.items()}

    return measure


def timed(name: str, call: Callable[[], Any], found: Findings) -> float:
    """Seconds of a call, after one that is not counted; they are a row of the table."""
    clock = Clock(torch.device(found.device))
    for part in ("first", "second"):
        with clock(part):
            call()
    found.add(name, f"{clock.seconds['second']:.3g}", "s an image")
    return clock.seconds["second"]


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny images and few steps, to try the program")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which nothing new begins")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(0)
    found = Findings(options.device, time.monotonic() + 60 * options.minutes)
    found.part("equality", partial(equality, small=options.small))
    half = ["--precision", "bf16-mixed"]
    found.part("RIB, single precision", recipe([], options.small, plain=True))
    found.part("RIB, bfloat16", recipe(half, options.small, plain=False))
    found.part("methods", methods(options.small))
    found.part("dense CRF", crf(options.small))
    if not options.small:  # compiling takes minutes
        found.part("RIB, bfloat16, compiled", recipe([*half, "--compile"], options.small, plain=False))
    show(" ".join(circumstances().get(name, "") for name in ("gpu", "cpu", "commit")), found.rows)
    write_json(options.json, {"rows": found.rows, **found.raw})


if __name__ == "__main__":
    main()
