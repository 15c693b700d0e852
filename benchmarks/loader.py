"""Times what feeds RIB: reference batches decoded at each draw or from the pool, and the views of the images.

The steps of RIB wait for their references only where these come slower than a step computes.

    python benchmarks/loader.py                                   # 40 images of 375 x 500, about a minute
    python benchmarks/loader.py --threads 0 8 16 --json outputs/loader.json
"""

import argparse
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measuring import make_tree, show, write_json

from ribseg.data.feed.image_pool import build_pool, image_sizes, pool_bytes
from ribseg.modules.data_module import WSSSDataModule


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def consume(batches: Iterator[Any]) -> None:
    """Takes batches and lets them go, as RIB does."""
    deque(batches, maxlen=0)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=40, help="images in the data set")
    parser.add_argument("--size", type=int, nargs=2, default=[375, 500], help="height and width of images")
    parser.add_argument("--crop", type=int, default=512, help="side of reference crops")
    parser.add_argument("--references", type=int, default=20, help="B, reference images per step")
    parser.add_argument("--steps", type=int, default=5, help="batches that are timed")
    parser.add_argument("--threads", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = make_tree(Path(temporary) / "data", options.images, tuple(options.size))
        data = WSSSDataModule(root, eval_splits=[], crop_size=options.crop, num_workers=0)
        data.setup()
        found = measure(data, Path(temporary) / "pool", options)
    show("reference batches", found["references"])
    show("once per image", [found["images"]])
    write_json(options.json, found)


def measure(data: WSSSDataModule, folder: Path, options: Any) -> dict[str, Any]:
    """Milliseconds per image."""
    sizes = image_sizes(data.train)
    built = seconds(lambda: build_pool(folder, data.train, sizes, threads=max(options.threads)))
    pool = build_pool(folder, data.train, sizes)
    image_id, labels = data.train.ids[0], data.train.labels[0]
    rows = []
    for threads in options.threads:
        row: dict[str, Any] = {"threads": threads}
        for name, source in (("decoded at each draw, ms", None), ("from the pool, ms", pool)):
            batches = data.references(options.references, threads, source)
            consume(batches(image_id, labels, 1))  # loads what the first call loads
            taken = seconds(lambda batches=batches: consume(batches(image_id, labels, options.steps)))
            row[name] = 1000 * taken / options.steps / options.references
        rows.append(row)
    views = data.predict_dataset()
    number = min(len(views), 10)
    images = {
        "views, ms": 1000 * seconds(lambda: consume(views[i] for i in range(number))) / number,
        "decoding into the pool, ms": 1000 * built / len(data.train),
        "pool, bytes": pool_bytes(sizes) / len(data.train),
    }
    return {"references": rows, "images": images}


if __name__ == "__main__":
    main()
