"""What many images cost beside the computation: files in one folder, and the memory of each stage.

python benchmarks/many_images.py files                    # 200,000 small maps in one folder, some minutes
python benchmarks/many_images.py memory                   # the stages over 200 and over 2,000 small images
python benchmarks/many_images.py memory --images 20 --times 10 --json outputs/memory.json
python benchmarks/many_images.py recipe                   # VOC's recipe, on images of VOC's and COCO's size
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from measuring import make_tree, show, write_json

from ribseg.data.io.maps import LocalizationMaps, load_maps, map_path, read_records, save_maps
from ribseg.data.io.masks import write_mask
from ribseg.files import missing_ids
from ribseg.pipeline.recipe.configuration import CONF
from ribseg.pipeline.run import run

T = TypeVar("T")
Peaks = dict[str, tuple[dict[str, float], float]]  # stage -> GiB by kind of memory, and seconds
# Small images and a narrow network: what is looked at does not depend on their size.
SMALL = (
    *("data.crop_size=64", "data.resize_long=[64,96]", "data.batch_size=8", "data.num_workers=0"),
    *("classifier.epochs=1", "classifier.model.backbone=resnet10t", "classifier.model.pretrained=false"),
    *("classifier.model.weights=null", "classifier.model.backbone_kwargs={channels:[8,8,12,16]}"),
    *("rib.steps=1", "rib.references=0", "rib.lr=1e-5", "rib.area_limit=null", "refine.crf.iterations=1"),
    *("refine.crf.backend=torch", "engine.processes=1", "refine.variants=[none]", "trainer.accelerator=cpu"),
    *("evaluate.bootstrap=100", "segmenter.sources=[rib]", "data.eval_splits=[val]", "progress=false"),
)
CHAIN = "run=[classifier,cam,rib,pseudo_masks,evaluate,report]"
# (height, width) of most images.
SIZES = {"VOC": (375, 500), "COCO": (480, 640)}
# What of the published recipe only takes longer: epochs, iterations, steps of RIB after the first update.
SHORT = (
    *("experiment=rib_voc", "data.labels=mask", "classifier.epochs=1", "classifier.model.pretrained=false"),
    *("rib.steps=2", "rib.area_limit=null", "affinity.epochs=1", "affinity.backbone.weights=classifier"),
    *("affinity.backbone.pretrained=false", "segmenter.max_steps=2", "segmenter.check_every=2"),
    *("segmenter.model.pretrained=false", "evaluate.bootstrap=100", "data.num_workers=0", "progress=false"),
    "run=[classifier,cam,rib,refine,segmenter,evaluate,report]",
)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What a function returns, and the seconds that it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def small_maps(number: int) -> Iterator[LocalizationMaps]:
    """Maps of one class of a small image, without end the same few."""
    generator = torch.Generator().manual_seed(0)
    kept = [torch.rand(1, 24, 32, generator=generator) for _ in range(8)]
    for index in range(number):
        yield LocalizationMaps(torch.tensor([index % 20]), kept[index % 8], None, (96, 128))


def files(number: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each thing that is done with many files in one folder."""
    ids = [f"{index:08d}" for index in range(number)]
    rows, part = [], max(1, number // 10)
    written = zip(ids, small_maps(number), strict=True)
    for tenth in (1, 10):
        skipped = 0 if tenth == 1 else max(0, number - 2 * part)
        for _ in range(skipped):
            save(folder, *next(written))
        _, seconds = timed(lambda: [save(folder, *next(written)) for _ in range(part)])
        rows.append(row(f"write, tenth {tenth} of 10", part, seconds))
    found, seconds = timed(lambda: missing_ids(folder / "maps", ids, ".npz"))
    assert not found
    rows.append(row("which are missing", number, seconds))
    chosen = np.random.default_rng(0).choice(number, min(number, 2000), replace=False)
    _, seconds = timed(lambda: [load_maps(map_path(folder, ids[index])) for index in chosen])
    rows.append(row("read at random", len(chosen), seconds))
    records, seconds = timed(lambda: read_records(folder))
    assert len(records) == number
    rows.append(row("records", number, seconds))
    return rows


def save(folder: Path, image_id: str, maps: LocalizationMaps) -> None:
    """Writes record and maps as the stages do."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "records-0.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"id": image_id, "classes": 1, "seconds": 0.0}) + "\n")
    save_maps(map_path(folder, image_id), maps)


def row(what: str, number: int, seconds: float) -> dict[str, Any]:
    """A row of the table."""
    return {"what": what, "files": number, "seconds": seconds, "ms a file": 1000 * seconds / number}


def tree_of(
    folder: Path, images: int, size: tuple[int, int] = (64, 96), labelled: Container[int] | None = None
) -> Path:
    """A data set of images with masks; the last fifth is val.

    Args:
        folder: for the data set.
        images: their number.
        size: (height, width) of each.
        labelled: the images with a class, counted from 0; None: all.
    """
    root = make_tree(folder, images, size)
    masks, lists = root / "SegmentationClass", root / "ImageSets" / "Segmentation"
    masks.mkdir()
    ids = (lists / "train.txt").read_text().split()
    (root / "image_labels.csv").unlink()  # the masks say it
    for index, image_id in enumerate(ids):
        labels = np.zeros(size, np.uint8)
        if labelled is None or index in labelled:
            labels[size[0] // 4 : 3 * size[0] // 4, size[1] // 4 : 3 * size[1] // 4] = 1 + index % 20
        write_mask(masks / f"{image_id}.png", labels)
    cut = len(ids) - len(ids) // 5
    for name in ("train", "trainaug"):
        (lists / f"{name}.txt").write_text("\n".join(ids[:cut]))
    (lists / "val.txt").write_text("\n".join(ids[cut:]))
    return root


def peaks(root: Path, folder: Path, words: Sequence[str]) -> Peaks:
    """Stage -> peaks of memory in GiB by kind, and seconds.

    Args:
        root: of the data set.
        folder: for store and report.
        words: of the command.
    """
    places = [f"data.root={root}", f"store.root={folder / 'store'}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*words, *places])
    stores = run(cfg, folder / "out")["store"]
    facts = {name: json.loads(Path(place, "manifest.json").read_text()) for name, place in stores.items()}
    return {name: (each["peak_gib"], each["seconds"]) for name, each in facts.items()}


def few_and_many(images: int, folder: Path, words: Sequence[str]) -> Peaks:
    """The `peaks` over as many small images."""
    torch.set_num_threads(1)
    return peaks(tree_of(folder / "data", images), folder, ["experiment=rib_folder", *SMALL, CHAIN, *words])


def of_size(name: str, folder: Path, words: Sequence[str]) -> Peaks:
    """The `peaks` of the published recipe over images of a size; four have a class, two of them in train."""
    root = tree_of(folder / "data", 40, SIZES[name], labelled=range(30, 34))
    return peaks(root, folder, [*SHORT, *words])


def alone(work: Callable[..., T], *arguments: Any) -> T:
    """What a function returns in a fresh process, in which nothing is left of another run."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def table(found: Mapping[str, Peaks]) -> list[dict[str, Any]]:
    """A row for each stage, with the peaks and the seconds of each run."""
    rows = []
    for stage in next(iter(found.values())):
        row: dict[str, Any] = {"stage": stage}
        for run_name, stages in found.items():
            used, seconds = stages[stage]
            row |= {f"{kind} GiB, {run_name}": gib for kind, gib in used.items()}
            row[f"s, {run_name}"] = seconds
        rows.append(row)
    return rows


def memory(images: int, times: int, folder: Path, words: Sequence[str]) -> list[dict[str, Any]]:
    """The table of small images, with the peaks of both numbers."""
    numbers = (images, images * times)
    return table(
        {f"{number} images": alone(few_and_many, number, folder / str(number), words) for number in numbers}
    )


def recipe(folder: Path, words: Sequence[str]) -> list[dict[str, Any]]:
    """The table of the published recipe, with the peaks of each size."""
    return table({name: alone(of_size, name, folder / name, words) for name in SIZES})


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("files", "memory", "recipe"))
    parser.add_argument("--images", type=int, help="files: 200000, memory: 200 and ten times as many")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="on the file system that is looked at")
    parser.add_argument("--set", nargs="*", default=[], help="settings, as trainer.accelerator=gpu")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as place:
        if chosen.what == "files":
            rows = files(chosen.images or 200_000, Path(place))
        elif chosen.what == "memory":
            rows = memory(chosen.images or 200, chosen.times, Path(place), chosen.set)
        else:
            rows = recipe(Path(place), chosen.set)
    show(f"Many images: {chosen.what}", rows)
    write_json(chosen.json, {chosen.what: rows})


if __name__ == "__main__":
    main()
