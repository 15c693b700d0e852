"""What less precision changes: RIB's maps and their mIoU in float32, TF32 and bfloat16, one classifier.

Trains the experiment's classifier if the store has none, then makes the maps of the last of its evaluated
splits once per precision.

    python benchmarks/precision.py                                  # the built-in data, two minutes
    python benchmarks/precision.py --experiment rib_voc --images 200 data.root=PATH
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from measuring import show, write_json
from rich.progress import track

import ribseg
from ribseg.data.io.maps import LocalizationMaps
from ribseg.methods.cam import merge_maps
from ribseg.modules import LocalizationModule
from ribseg.pipeline.plan import KINDS
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.run import begin, run

CONF = Path(__file__).parents[1] / "conf"


def precisions(device: torch.device) -> Iterator[tuple[str, bool, AbstractContextManager[Any]]]:
    """Name, whether TF32 is allowed, and autocast; float32 first."""
    yield "float32", False, nullcontext()
    if device.type == "cuda":
        yield "TF32", True, nullcontext()
    yield "bfloat16", True, torch.autocast(device.type, torch.bfloat16)


def make_maps(module: LocalizationModule, items: Any) -> tuple[list[LocalizationMaps], float]:
    """Maps of all items, and seconds per image."""
    maps, start = [], time.perf_counter()
    for number in track(range(len(items)), "Maps"):
        item = items[number]
        adapted = module.localize(item.id, item.views, item.labels)
        merged = merge_maps(adapted.maps, item.size)
        maps.append(LocalizationMaps(merged.classes, merged.strided.cpu(), merged.full.cpu(), merged.size))
    return maps, (time.perf_counter() - start) / len(items)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--experiment", default="demo")
    parser.add_argument("--images", type=int, help="of the split; default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("overrides", nargs="*", help="settings, as for train.py")
    options = parser.parse_args()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "config", [f"experiment={options.experiment}", "run=[classifier,rib]", *options.overrides]
        )
    run(cfg, "outputs/precision")
    rows = measure(Session(cfg, Path("outputs/precision"), KINDS), options)
    show(f"RIB on {options.experiment}", rows)
    write_json(options.json, {"rows": rows})


def measure(session: Session, options: Any) -> list[dict[str, Any]]:
    """A row per precision."""
    device = torch.device(options.device)
    folder = list(session.data.evals.values())[-1]
    ids = list(folder.ids[: options.images])
    items = session.data.predict_dataset(ids)
    module = rib_module(session).to(device)
    rows: list[dict[str, Any]] = []
    reference: list[LocalizationMaps] = []
    for name, tf32, autocast in precisions(device):
        torch.backends.cudnn.allow_tf32 = tf32
        with autocast:
            maps, seconds = make_maps(module, items)
        reference = reference or maps
        sweep = ribseg.ThresholdSweep(folder.num_classes)
        for image_id, made in zip(ids, maps, strict=True):
            sweep.update(made.full, made.classes, torch.from_numpy(folder.mask(image_id)))
        pairs = zip(maps, reference, strict=True)
        differences = [float((a.full - b.full).abs().mean()) for a, b in pairs if len(a.classes)]
        rows.append(
            {
                "precision": name,
                "images": len(ids),
                "best mIoU x 100": f"{100 * float(sweep.compute()['best_miou']):.2f}",
                "mean difference of maps": float(np.mean(differences)),
                "s an image": seconds,
            }
        )
    return rows


def rib_module(session: Session) -> LocalizationModule:
    """The experiment's RIB with its trained classifier, and its searched rate."""
    begin(session)
    session.run.plan(session.run.stages)
    module: LocalizationModule = session.run.planned["rib"].module
    return module


if __name__ == "__main__":
    main()
