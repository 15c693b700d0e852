"""Measures what RIB gains over CAM on the built-in demo data, beside the controls, over several seeds.

Per seed: new data, a newly trained classifier, maps of all train and val images. The background threshold of
each method is the best one on train; the quoted mIoU is on val at that threshold. A seed draws data, the
head's initial weights, the order of training and the wrong classes; the backbone is always the shipped one.

    python benchmarks/demo_bar.py                          # 3 seeds, about 10 minutes on 2 cores
    python benchmarks/demo_bar.py --published --seeds 1 --threshold-images 100   # the published set-up, too
    python benchmarks/demo_bar.py --seeds 5 --out outputs/demo_bar.json
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import ribseg
from ribseg.data.demo.images import PARTS_DIR, make_demo_dataset
from ribseg.data.io.maps import LocalizationMaps
from ribseg.data.io.masks import read_mask
from ribseg.functional import argmax_labels
from ribseg.methods.controls import centre_prior, feature_norm, relabel, whole_image, wrong_labels
from ribseg.metrics import ThresholdSweep, bootstrap_miou, interval, label_counts, pooled_scores
from ribseg.modules.classification import ClassifierModule
from ribseg.modules.data_module import WSSSDataModule
from ribseg.seeds import rng

BACKBONE = {"channels": (32, 64, 128, 192), "stem_width": 16}
SPLITS = ("train", "val")
EPOCHS = 5
SCALES = (1.0, 0.5)
# What `experiment=demo` uses. The margin and the area limit of the paper belong to ResNet-50 on photographs:
# both are off, ten steps are always taken.
RIB = {
    "steps": 10,
    "lr": 1e-3,
    "head_lr_factor": 10.0,
    "trainable": "head",
    "preset": "fixed",
    "margin": None,
    "area_limit": None,
    "loss_views": (0, 1),
}
PUBLISHED = RIB | {"trainable": "published", "preset": "official", "margin": 600.0, "area_limit": 0.7}
PUBLISHED_RATES = (1e-5, 3e-5, 1e-4, 3e-4)
Maps = dict[str, LocalizationMaps]
Method = Callable[[dict[str, Any]], LocalizationMaps]


def train_classifier(root: Path, seed: int, epochs: int) -> tuple[ribseg.Classifier, WSSSDataModule, float]:
    """Trains on image-level labels alone; returns the classifier, its data and its mAP on val."""
    pl.seed_everything(seed, verbose=False)
    data = WSSSDataModule(
        root,
        crop_size=128,
        resize_long=(96, 160),
        batch_size=16,
        num_workers=0,
        eval_splits=SPLITS,
        scales=SCALES,
        seed=seed,
    )
    classifier = ribseg.Classifier(
        "resnet10t", data.num_classes, output_stride=8, weights="demo", backbone_kwargs=BACKBONE
    )
    module = ClassifierModule(classifier, lr=0.1, head_lr_factor=10.0)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data.train_dataloader())
    score = trainer.validate(module, data.val_dataloader(), verbose=False)[0]["val/mAP"]
    return classifier.eval(), data, float(score)


def merged(adaptation: ribseg.Adaptation, item: dict[str, Any]) -> LocalizationMaps:
    """Normalised maps at the image's size."""
    return ribseg.merge_maps(adaptation.maps, item.size)


def adapted(rib: ribseg.RIB, item: dict[str, Any]) -> LocalizationMaps:
    """Maps of RIB on the image's own views."""
    return merged(rib(item.views, item.labels), item)


def full(maps: LocalizationMaps) -> Tensor:
    """(K, H, W); `merge_maps` always makes them."""
    assert maps.full is not None
    return maps.full


def methods(classifier: ribseg.Classifier, seed: int, published: bool) -> dict[str, Method]:
    """Name -> what makes the maps of one item of `WSSSDataModule.predict_dataset`."""
    rib = ribseg.RIB(classifier, **RIB)

    def wrong(item: dict[str, Any]) -> LocalizationMaps:
        labels = wrong_labels(item.labels, rng(seed, "wrong class", item.id))
        return merged(relabel(rib(item.views, labels), item.labels), item)

    chosen: dict[str, Method] = {
        "cam": lambda item: merged(ribseg.cam(classifier, item.views, item.labels), item),
        "rib": partial(adapted, rib),
        "wrong_class": wrong,
        "feature_norm": lambda item: merged(feature_norm(classifier, item.views, item.labels), item),
    }
    for rate in PUBLISHED_RATES if published else ():
        official = ribseg.RIB(classifier, **(PUBLISHED | {"lr": rate}))
        chosen[f"published lr {rate:g}"] = partial(adapted, official)
    return chosen


def localize(
    items: Iterable[dict[str, Any]], chosen: dict[str, Method]
) -> tuple[dict[str, Maps], dict[str, float]]:
    """Maps by method and image, and seconds per image by method."""
    maps: dict[str, Maps] = {name: {} for name in (*chosen, "centre_prior", "whole_image")}
    seconds = dict.fromkeys(chosen, 0.0)
    for item in items:
        for name, method in chosen.items():
            start = time.perf_counter()
            maps[name][item.id] = method(item)
            seconds[name] += time.perf_counter() - start
        maps["centre_prior"][item.id] = centre_prior(maps["cam"][item.id])
        maps["whole_image"][item.id] = whole_image(maps["cam"][item.id])
    return maps, {name: total / len(maps["cam"]) for name, total in seconds.items()}


def best_threshold(maps: Maps, data: WSSSDataModule) -> float:
    """The background score with the highest mIoU on train."""
    sweep = ThresholdSweep(data.num_classes)
    for image_id in [name for name in data.evals["train"].ids if name in maps]:
        sweep.update(full(maps[image_id]), maps[image_id].classes, mask(data.evals["train"].mask(image_id)))
    return float(sweep.compute()["best_threshold"])


def mask(ids: np.ndarray) -> Tensor:
    """(H, W) uint8 -> int64 tensor."""
    return torch.from_numpy(ids.astype(np.int64))


def evaluate(maps: Maps, threshold: float, data: WSSSDataModule) -> dict[str, Any]:
    """Scores on val: counts per image for the bootstrap, and the share of head, body, background covered."""
    folder = data.evals["val"]
    counts, covered, pixels = [], torch.zeros(3), torch.zeros(3)
    for image_id in folder.ids:
        predicted = argmax_labels(full(maps[image_id]), maps[image_id].classes, threshold)
        counts.append(label_counts(predicted, mask(folder.mask(image_id)), data.num_classes))
        parts = mask(read_mask(folder.root / PARTS_DIR / f"{image_id}.png"))
        pixels += torch.bincount(parts.flatten(), minlength=3)
        covered += torch.bincount(parts[predicted > 0], minlength=3)
    table = torch.stack(counts)
    objects = torch.from_numpy(folder.labels.sum(1))
    background, head, body = (covered / pixels).tolist()
    return {
        "counts": table,
        "threshold": threshold,
        "miou": float(pooled_scores(table).miou),
        "one_object": float(pooled_scores(table[objects == 1]).miou),
        "two_objects": float(pooled_scores(table[objects == 2]).miou),
        "coverage": {"head": head, "body": body, "background": background},
    }


def run_seed(seed: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything of one seed."""
    start = time.perf_counter()
    root = make_demo_dataset(folder / f"demo-{seed}", seed, arguments.train, arguments.val)
    made = time.perf_counter()
    classifier, data, mean_ap = train_classifier(root, seed, arguments.epochs)
    trained = time.perf_counter()
    ids = [*data.evals["train"].ids[: arguments.threshold_images], *data.evals["val"].ids]
    views = data.predict_dataset(ids)
    numbers = track(range(len(views)), f"seed {seed}: maps", console=Console(stderr=True))
    items = (views[number] for number in numbers)
    maps, per_image = localize(items, methods(classifier, seed, arguments.published))
    results = {name: evaluate(m, best_threshold(m, data), data) for name, m in maps.items()}
    reference = bootstrap_miou(results["cam"]["counts"])
    for result in results.values():
        result["gain"] = result["miou"] - results["cam"]["miou"]
        result["gain_interval"] = interval(bootstrap_miou(result.pop("counts")) - reference)
    seconds = {"data": made - start, "classifier": trained - made} | per_image
    return {"seed": seed, "mAP": mean_ap, "seconds": seconds, "methods": results}


def show(runs: list[dict[str, Any]]) -> None:
    """One row per method, means over the seeds; gains per seed with their bootstrap intervals."""
    table = Table(title=f"Demo data, val, {len(runs)} seeds (mIoU x 100, thresholds chosen on train)")
    for column in (
        "map",
        "mIoU",
        "one object",
        "two objects",
        "head/body/backgr. %",
        "threshold",
        "gain by seed",
    ):
        table.add_column(column)
    for name in runs[0]["methods"]:
        results = [run["methods"][name] for run in runs]
        values = np.array([[r["miou"], r["one_object"], r["two_objects"]] for r in results]) * 100
        cover = np.array([[r["coverage"][part] for part in ("head", "body", "background")] for r in results])
        gains = "  ".join(
            f"{100 * r['gain']:+.1f} [{100 * r['gain_interval'][0]:+.1f}, {100 * r['gain_interval'][1]:+.1f}]"
            for r in results
        )
        cells = [f"{m:.1f} +- {s:.1f}" for m, s in zip(values.mean(0), values.std(0), strict=True)]
        share = "/".join(f"{100 * part:.0f}" for part in cover.mean(0))
        thresholds = " ".join(f"{r['threshold']:.2f}" for r in results)
        table.add_row(name, *cells, share, thresholds, gains)
    console = Console(width=170)
    console.print(table)
    for run in runs:
        times = ", ".join(f"{name} {value:.2f}" for name, value in run["seconds"].items())
        console.print(f"seed {run['seed']}: val mAP {run['mAP']:.3f}; seconds (maps: per image): {times}")


def main() -> None:
    """Runs the seeds, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--val", type=int, default=150)
    parser.add_argument("--threshold-images", type=int, help="train images for thresholds; all by default")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--published", action="store_true", help="also the published set-up, slower")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo_bar.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        runs = [run_seed(seed, arguments, Path(folder)) for seed in range(arguments.seeds)]
    show(runs)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({"rib": RIB, "arguments": vars(arguments), "runs": runs}, default=str, indent=1)
    )


if __name__ == "__main__":
    main()
