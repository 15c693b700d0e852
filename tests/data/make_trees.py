"""Fabricates tiny data sets in PASCAL VOC layout: `python tests/data/make_trees.py FOLDER` to look at one."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "aero_plane")
COLOURS = ((220, 60, 60), (60, 200, 60), (60, 60, 220))
# (height, width): odd, tall, wide, tiny, larger and smaller than a crop.
SIZES = (
    (37, 50),
    (50, 37),
    (48, 48),
    (33, 71),
    (71, 33),
    (1, 40),
    (40, 3),
    (64, 49),
    (25, 26),
    (96, 65),
    (51, 52),
    (45, 80),
)
# Classes (by index) of each image; image 4 holds two, image 7 all, image 10 none.
PRESENT = ((0,), (1,), (2,), (0,), (1, 2), (0,), (1,), (0, 1, 2), (2,), (1,), (), (0, 2))
TRAIN = 8  # of them are in the list `train`, the others in `val`


def image_ids() -> list[str]:
    return [f"2007_{number:06d}" for number in range(len(SIZES))]


def make_voc_tree(root: Path, seed: int = 0) -> Path:
    """Writes 12 images, masks (255 around each object), XML files, a CSV, classes.txt, lists train and val.

    Image 9 is a PNG, the others are JPEGs. The XML of image 0 also names a dog that the mask lacks, marked
    difficult; every object has a part with a name of its own.
    """
    rng = np.random.default_rng(seed)
    ids = image_ids()
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, image_id in enumerate(ids):
        image, mask = _draw(SIZES[number], PRESENT[number], rng)
        ending = "png" if number == 9 else "jpg"
        Image.fromarray(image).save(root / "JPEGImages" / f"{image_id}.{ending}")
        _save_mask(root / "SegmentationClass" / f"{image_id}.png", mask)
        names = [CLASSES[index] for index in PRESENT[number]]
        (root / "Annotations" / f"{image_id}.xml").write_text(_xml(names + ["dog"] * (number == 0)))
    rows = [
        f"{image_id},{' '.join(CLASSES[i] for i in here)}"
        for image_id, here in zip(ids, PRESENT, strict=True)
    ]
    (root / "tables").mkdir(parents=True)
    (root / "tables" / "image_labels.csv").write_text("\n".join(["image,classes", *rows]) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(ids[:TRAIN]) + "\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(ids[TRAIN:]) + "\n")
    return root


def _draw(
    size: tuple[int, int], present: tuple[int, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Gray noise with a coloured box per class side by side, and its mask."""
    height, width = size
    image = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
    mask = np.zeros(size, dtype=np.uint8)
    for place, index in enumerate(present):
        left, right = place * width // len(present), (place + 1) * width // len(present)
        mask[:, left:right] = 255
        inner = (slice(height // 5, height - height // 5), slice(left + width // 10, right - width // 10))
        mask[inner] = index + 1
        image[inner] = COLOURS[index]
    return image, mask


def _save_mask(path: Path, mask: np.ndarray) -> None:
    palette = np.arange(768, dtype=np.uint8) * 7  # any colours: readers must keep to the indices
    image = Image.fromarray(mask)
    image.putpalette(palette.tobytes())
    image.save(path)


def _xml(names: list[str]) -> str:
    objects = "".join(
        f"<object><name> {name} </name><difficult>1</difficult><part><name>head</name></part></object>"
        for name in names
    )
    return f"<annotation><filename>x.jpg</filename>{objects}</annotation>"


if __name__ == "__main__":
    print(make_voc_tree(Path(sys.argv[1])))
