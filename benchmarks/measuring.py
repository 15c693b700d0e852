"""What the benchmarks share: a clock for parts, fabricated data, tables, and what it was measured on."""

import json
import os
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table

from ribseg.data.io.labels import write_label_csv
from ribseg.data.voc import VOC_CLASSES
from ribseg.store.artefact import environment


class Clock:
    """Adds up seconds by part. Parts do not nest.

    Args:
        device: is waited for at both ends of a part, so that its work counts where it was asked for. None
            does not wait: the parts then say little of a GPU, and the whole is undisturbed.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._waits = device is not None and device.type == "cuda"

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Counts the time inside for a part."""
        self._wait()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self.seconds[part] += time.perf_counter() - start

    def _wait(self) -> None:
        if self._waits:
            torch.cuda.synchronize()


def make_tree(root: Path, images: int, size: tuple[int, int], seed: int = 0) -> Path:
    """Writes a data set in VOC layout: JPEGs of smoothed noise, (height, width), one or two classes each."""
    generator = np.random.default_rng(seed)
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    ids = [f"2007_{number:06d}" for number in range(images)]
    for image_id in ids:
        noise = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))
        stretched = np.clip((np.asarray(smooth, np.float32) - 127) * 6 + 127, 0, 255).astype(np.uint8)
        Image.fromarray(stretched).save(root / "JPEGImages" / f"{image_id}.jpg", quality=90)
    classes = {i: generator.choice(VOC_CLASSES, generator.integers(1, 3), replace=False) for i in ids}
    write_label_csv(root / "image_labels.csv", classes)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(ids))
    return root


def circumstances() -> dict[str, str]:
    """Hardware, versions and commit."""
    found = {"cpu": _cpu(), "cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    called = subprocess.run(git, capture_output=True, text=True, check=False)
    return found | {"commit": called.stdout.strip() or "unknown"} | environment()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows that have the same keys as a table."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row.values()))
    Console().print(table)


def write_json(path: Path | None, found: Mapping[str, Any]) -> None:
    """Writes what was found, with the circumstances, if a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**found, "circumstances": circumstances()}, indent=2) + "\n")
