r"""Times the RIB stage against the plain program of `plain_rib.py`, on the same images, draws and weights.

Prints seconds per image by part, and how far apart the maps are. "data" is reading and augmenting (for our
stage: what the steps wait for it), "network" is everything but data and writing. Our pool of decoded images
is made once for a data set: its seconds stand beside, per image of the list, and are not part of "all". The
stop rules are computed, but their limits let every image take all steps. With `--trainable head` the other
program is no RIB, but the plain CAM of the same views and references.

Below stand the rate of our network and that of plain matrix products on this device, in the same precision,
the memory that a GPU needed, and what it comes to for VOC's 10,582 training images. `cost.py` counts
the operations.

    python benchmarks/rib.py                                          # small crops, a few minutes on 2 cores
    python benchmarks/rib.py --steps 10 --references 20 --images 1
    python benchmarks/rib.py --steps 10 --trainable head
    python benchmarks/rib.py --published --images 100 --list 1000 --plain-images 3 --workers 12 \
        --precision bf16-mixed --no-parts                             # one GPU, the published VOC recipe
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cost
import plain_rib
import pytorch_lightning as pl
import torch
from measuring import Clock, make_tree, show, write_json
from torch import Tensor

import ribseg
from ribseg.data.feed.image_pool import build_pool, image_sizes, pool_bytes
from ribseg.data.io.maps import load_maps, map_path
from ribseg.modules import LocalizationModule
from ribseg.modules.callbacks import MapWriter
from ribseg.modules.data_module import WSSSDataModule

OUTSIDE = ("data", "write")


class TimedRIB(ribseg.RIB):
    """RIB with a clock at its parts."""

    clock: Clock

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        network = self.adapted

        def adapted(encoded: Tensor) -> Tensor:
            with self.clock("forward"):
                return network(encoded)

        self.adapted = adapted

    def _encode(self, images: Tensor) -> Tensor:
        with self.clock("trunk"):
            return super()._encode(images)


class TimedWriter(MapWriter):
    """The stage's writer with a clock."""

    clock: Clock

    def write_on_batch_end(self, *arguments: Any) -> None:
        """Writes the maps of an image."""
        with self.clock("write"):
            super().write_on_batch_end(*arguments)


def timed(batches: Iterator[Any], clock: Clock) -> Iterator[Any]:
    """Counts the time that the steps wait for reference images."""
    while True:
        with clock("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def our_stage(data: WSSSDataModule, state: dict[str, Tensor], folder: Path, options: Any) -> dict[str, float]:
    """The stage as the program runs it: a Trainer that predicts, a pool of decoded images, written maps."""
    start = time.perf_counter()
    sizes = image_sizes(data.train)
    pool = build_pool(folder / "pool", data.train, sizes, threads=max(options.workers, 1))
    pooled = time.perf_counter() - start
    module = make_module(data, state, options, pool)
    clock = Clock(torch.device(options.device) if options.parts else None)
    references = module.references
    module.method.clock = clock
    if references is not None:  # with trainable=head they would change nothing
        module.references = lambda *asked: timed(references(*asked), clock)
    trainer = make_trainer(folder, options, clock)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    ids = data.train.ids[: options.images]
    with plain_rib.timed_learning(clock):
        trainer.predict(module, data.prediction_loader(ids), return_predictions=False)
    total = time.perf_counter() - start
    found = parts(clock, total, len(ids))
    return found | {"pool": pooled / len(data.train), "pool bytes": pool_bytes(sizes) / len(data.train)}


def make_module(
    data: WSSSDataModule, state: dict[str, Tensor], options: Any, pool: Any
) -> LocalizationModule:
    """The module with a clock in it."""
    model = ribseg.Classifier(options.backbone)
    model.load_state_dict(state)
    references = data.references(options.references, pool)
    recipe = {name: value for name, value in asdict(settings(options)).items() if name != "threshold"}
    pooling = ribseg.GNDRP(settings(options).threshold)
    rib = TimedRIB(model, pooling, trainable=options.trainable, compile=options.compile, **recipe)
    return LocalizationModule(model, rib, references, "rib")


def settings(options: Any) -> plain_rib.Settings:
    """The VOC recipe's, with stop rules that never stop."""
    return plain_rib.Settings(options.steps, 8e-6, 0.4, margin=1e30, area_limit=1.0, area_threshold=0.3)


def make_trainer(folder: Path, options: Any, clock: Clock) -> pl.Trainer:
    """One device, no logs."""
    writer = TimedWriter(folder, True)
    writer.clock = clock
    return pl.Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        precision=options.precision,
        callbacks=[writer],
        inference_mode=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )


def plain_program(
    data: WSSSDataModule, state: dict[str, Tensor], folder: Path, options: Any
) -> tuple[dict[str, float], dict[str, list[Tensor]]]:
    """The other program over the same images: seconds per image, and the maps of each image's views."""
    program = plain_rib.cam_only if options.trainable == "head" else plain_rib.adapt
    model = ribseg.Classifier(options.backbone).to(options.device)
    model.load_state_dict(state)
    device = torch.device(options.device) if options.parts else None
    clock, maps = Clock(device), {}
    references = data.references(options.references)
    images = data.predict_dataset(data.train.ids[: min(options.images, options.plain_images)])
    if options.device == "cuda":  # what the device does once must not count for so few images
        item = images[0]
        program(model, item.views, item.id, references, settings(options), Clock())
    start = time.perf_counter()
    for number in range(len(images)):
        with clock("data"):
            item = images[number]
        maps[item.id] = program(model, item.views, item.id, references, settings(options), clock)
        with clock("write"):
            plain_rib.save(folder / f"{item.id}.npz", maps[item.id], item.size)
    return parts(clock, time.perf_counter() - start, len(images)), maps


def parts(clock: Clock, total: float, images: int) -> dict[str, float]:
    """Seconds per image, of everything and by part; "rest" is what no part covers."""
    seconds = {name: value / images for name, value in clock.seconds.items()}
    seconds["rest"] = total / images - sum(seconds.values())
    return {"all": total / images, **seconds}


def largest_difference(folder: Path, maps: dict[str, list[Tensor]], data: WSSSDataModule) -> float:
    """Of our full-size maps, in [0, 1], from the plain program's; half precision alone gives 5e-4."""
    largest = 0.0
    for image_id, views in maps.items():
        ours = load_maps(map_path(folder, image_id))
        merged = ribseg.merge_maps(views, ours.size, ours.classes)
        largest = max(largest, float((merged.full - ours.full).abs().max()))
    return largest


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `--published` sets the sizes of the VOC recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=2, help="images that are adapted")
    parser.add_argument("--plain-images", type=int, help="of these, by the plain program; default: all")
    parser.add_argument("--list", type=int, default=60, help="images in the data set")
    parser.add_argument(
        "--size", type=int, nargs=2, default=[192, 256], help="height and width of the images"
    )
    parser.add_argument("--crop", type=int, default=256, help="side of reference crops")
    parser.add_argument(
        "--resize-long", type=int, nargs=2, default=[160, 320], help="range of their longer side"
    )
    parser.add_argument("--references", type=int, default=8, help="B, reference images per step")
    parser.add_argument("--steps", type=int, default=4, help="K")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--trainable", default="published", choices=("published", "head"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="32-true", help="of our Trainer; the plain program has 32")
    parser.add_argument("--compile", action="store_true", help="torch.compile our network")
    parser.add_argument("--workers", type=int, default=0, help="of the loader, and threads for references")
    parser.add_argument(
        "--no-parts", dest="parts", action="store_false", help="do not wait for the GPU in parts"
    )
    parser.add_argument("--no-plain", dest="plain", action="store_false", help="leave the plain program out")
    parser.add_argument("--published", action="store_true", help="500 x 375, crops of 512, B = 20, K = 10")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args(arguments)
    if options.published:
        options.size, options.crop, options.resize_long = [375, 500], 512, [320, 640]
        options.references, options.steps = 20, 10
    options.plain_images = options.plain_images or options.images
    return options


def main() -> None:
    """Measures, prints, writes."""
    options = parse()
    found = measured(options)
    report(found)
    write_json(options.json, found)


def measured(options: Any) -> dict[str, Any]:
    """Times both programs on fabricated images."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = make_tree(folder / "data", options.list, tuple(options.size))
        data = WSSSDataModule(
            root, eval_splits=[], crop_size=options.crop, resize_long=options.resize_long,
            num_workers=options.workers,
        )  # fmt: skip
        state = example_weights(options.backbone)
        found: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}}
        (folder / "plain").mkdir()
        if options.plain:
            found["plain"], maps = plain_program(data, state, folder / "plain", options)
        found["ours"] = our_stage(data, state, folder / "ours", options)
        found["whole"] = whole(found["ours"], data, options)
        if options.plain:
            if options.trainable != "head":
                found["largest difference"] = largest_difference(folder / "ours", maps, data)
            found["ratio"] = {
                "network": network(found["plain"]) / network(found["ours"]),
                "all": found["plain"]["all"] / found["ours"]["all"],
            }
    return found


def example_weights(backbone: str) -> dict[str, Tensor]:
    """Random weights whose class maps are mostly positive, as those of present classes are."""
    model = ribseg.Classifier(backbone)
    with torch.no_grad():
        model.weight.abs_()
        for layer in model.modules():
            # The last one of each block starts at zero: the numbers behind would be denormal, and slow.
            if isinstance(layer, torch.nn.BatchNorm2d) and not layer.weight.any():
                layer.weight.fill_(0.5)
    return model.state_dict()


def whole(ours: dict[str, float], data: WSSSDataModule, options: Any) -> dict[str, float]:
    """Rates, memory, and the time for all of VOC, from seconds per image."""
    images, _ = cost.SETS["VOC trainaug"]
    found = {"hours for VOC trainaug on one device": images * ours["all"] / 3600}
    if options.trainable == "published":
        with torch.device("meta"):
            model = ribseg.Classifier(options.backbone)
        recipe = cost.Recipe(
            tuple(options.size), options.steps, options.references, options.crop, data.scales, cost.LOSS_VIEWS
        )
        found["network, TFLOP/s"] = cost.cost(model, recipe)["ours, TFLOP"] / network(ours)
        found["matrix product, TFLOP/s"] = matrix_rate(options)
        found["share"] = found["network, TFLOP/s"] / found["matrix product, TFLOP/s"]
    if options.device == "cuda":
        found["largest memory, GiB"] = torch.cuda.max_memory_allocated() / cost.GIB
    return found


def matrix_rate(options: Any) -> float:
    """TFLOP/s of square matrix products, in what our convolutions compute in."""
    side, repeats = (8192, 50) if options.device == "cuda" else (1024, 3)
    bits = options.precision.split("-")[0]
    dtype = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}.get(bits, torch.float32)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    matrix = torch.randn(side, side, device=options.device, dtype=dtype)
    clock = Clock(torch.device(options.device))
    for name in ("warm-up", "measured"):
        with clock(name):
            for _ in range(repeats):
                matrix @ matrix
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * side**3 * repeats / clock.seconds["measured"] / cost.TERA


def network(seconds: dict[str, float]) -> float:
    """Seconds per image of everything but data and writing."""
    return seconds["all"] - sum(seconds.get(name, 0.0) for name in OUTSIDE)


def report(found: dict[str, Any]) -> None:
    """Prints the parts side by side."""
    programs = [name for name in ("plain", "ours") if name in found]
    names = dict.fromkeys(name for program in programs for name in found[program])
    rows = [
        {"seconds per image": name, **{program: found[program].get(name, 0.0) for program in programs}}
        for name in names
        if name != "pool bytes"
    ]
    rows.append(
        {"seconds per image": "network", **{program: network(found[program]) for program in programs}}
    )
    show("RIB", rows)
    for name in ("ratio", "largest difference", "whole"):
        if name in found:
            print(f"{name}: {found[name]}")


if __name__ == "__main__":
    main()
