"""The built-in demo data set: creatures of eight classes in PASCAL VOC layout, made in seconds from a seed.

The mark on the head determines the class. The body is part of the object and its mask, but has the texture of
the class in only half of the objects, so that a classifier uses the heads, and class activation maps miss the
bodies: the problem that RIB addresses.
"""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from ribseg.data.demo import world
from ribseg.data.io.masks import write_mask
from ribseg.errors import DataError

# The classes, named by the mark on the head; class i + 1 in the masks.
CLASSES = ("plus", "ring", "triangle", "star", "bar", "pair", "chevron", "comb")
# The texture that belongs to each class.
CLASS_TEXTURES = ("stripes", "dots", "checker", "rings", "zigzag", "grid", "speckle", "bricks")
# Share of images with two objects (of different classes), and of bodies with the class's texture.
TWO_OBJECTS, OWN_TEXTURE = 1 / 3, 0.5
PARTS_DIR = "Parts"  # folder of the parts masks: `world.BACKGROUND`, `world.HEAD`, `world.BODY`


class DemoImage(NamedTuple):
    """One image: (S, S, 3) uint8 RGB, (S, S) uint8 class ids, (S, S) uint8 parts, and class indices."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    parts: NDArray[np.uint8]
    classes: tuple[int, ...]


def demo_image(rng: np.random.Generator, size: int = 128) -> DemoImage:
    """An image with one or two creatures.

    Args:
        rng: source of all randomness.
        size: edge length in pixels, at least 64.
    """
    two = rng.random() < TWO_OBJECTS
    classes = tuple(int(c) for c in rng.choice(len(CLASSES), size=2 if two else 1, replace=False))
    canvas = world.background(size, rng)
    mask, parts = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    for label, pose in zip(classes, _poses(rng, len(classes), size), strict=True):
        seen = world.paint(canvas, draw_looks(label, rng), pose, rng)
        mask[seen > 0] = label + 1
        parts[seen > 0] = seen[seen > 0]
    return DemoImage(world.develop(canvas, rng), mask, parts, tuple(sorted(classes)))


def draw_looks(label: int, rng: np.random.Generator) -> world.Looks:
    """Random attributes of an object of a class: its mark, and with probability 0.5 its texture."""
    looks = world.random_looks(rng)
    own = world.TEXTURES.index(CLASS_TEXTURES[label])
    texture = own if rng.random() < OWN_TEXTURE else looks.texture
    return world.Looks(world.MARKS.index(CLASSES[label]), texture, looks.shape, looks.hue)


def _poses(rng: np.random.Generator, count: int, size: int) -> list[world.Pose]:
    """Random poses that keep each creature inside the image, and two of them apart."""
    while True:
        poses = [_pose(rng, size, (0.16, 0.2) if count == 2 else (0.2, 0.3)) for _ in range(count)]
        if count == 1 or _apart(poses[0], poses[1]):
            return poses


def _apart(first: world.Pose, second: world.Pose) -> bool:
    # Between the tail, 1 length behind the body's centre, and the head's end, 1.5 lengths before it.
    middles = [np.array([p.x, p.y]) + 0.25 * p.length * _direction(p.angle) for p in (first, second)]
    return bool(np.linalg.norm(middles[0] - middles[1]) > 1.35 * (first.length + second.length))


def _direction(angle: float) -> NDArray[np.float64]:
    return np.array([np.cos(angle), np.sin(angle)])


def _pose(rng: np.random.Generator, size: int, lengths: tuple[float, float]) -> world.Pose:
    length, angle = rng.uniform(*lengths) * size, rng.uniform(0, 2 * np.pi)
    reach = 1.25 * length
    centre = rng.uniform(reach, size - reach, 2) - 0.25 * length * _direction(angle)
    return world.Pose(float(centre[0]), float(centre[1]), float(length), float(angle))


def make_demo_dataset(
    root: str | Path, seed: int = 0, train: int = 400, val: int = 150, size: int = 128
) -> Path:
    """Writes the demo data set, unless it exists, and returns its folder.

    The layout is PASCAL VOC's: `JPEGImages/`, `SegmentationClass/` (palette PNG),
    `ImageSets/Segmentation/{train,val}.txt`, and `classes.txt`, `image_labels.csv`. `Parts/` has masks of
    head (1) and body (2). The same arguments give the same bytes. The folder appears when it is complete.

    Args:
        root: the folder to create; it may exist if it is empty.
        seed: of everything random. Image i of a split depends on (seed, split, i) alone.
        train: number of images in the split `train`.
        val: number of images in the split `val`.
        size: edge length in pixels.

    Raises:
        DataError: the folder has other content, e.g. a demo data set with other settings.
    """
    root = Path(root)
    stamp = f"ribseg demo data set: seed {seed}, train {train}, val {val}, size {size}\n"
    if root.is_dir() and any(root.iterdir()):
        _check_stamp(root, stamp)
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename does not work across file systems.
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write(temporary, seed, {"train": train, "val": val}, size)
        (temporary / "demo.txt").write_text(stamp)
        temporary.chmod(0o755)  # mkdtemp creates it with 0o700
        try:
            temporary.replace(root)  # atomic, and replaces an empty folder
        except OSError:
            if not root.is_dir():
                raise
            _check_stamp(root, stamp)  # another process was faster; its result must be the same
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _check_stamp(root: Path, stamp: str) -> None:
    file = root / "demo.txt"
    found = file.read_text() if file.is_file() else "something else\n"
    if found != stamp:
        raise DataError(
            f"expected {root} to be empty or to hold the {stamp.strip()!r}, found {found.strip()!r}; "
            "delete it or choose another folder"
        )


def _write(root: Path, seed: int, splits: dict[str, int], size: int) -> None:
    for folder in ("JPEGImages", "SegmentationClass", PARTS_DIR, "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rows = ["image,classes"]
    for number, (split, count) in enumerate(splits.items()):
        names = [f"{split}_{index:05d}" for index in range(count)]
        for index, name in enumerate(names):
            sample = demo_image(np.random.default_rng((seed, number, index)), size)
            image = PILImage.fromarray(sample.image)
            image.save(root / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
            write_mask(root / "SegmentationClass" / f"{name}.png", sample.mask)
            write_mask(root / PARTS_DIR / f"{name}.png", sample.parts)
            rows.append(f"{name},{' '.join(CLASSES[c] for c in sample.classes)}")
        if names:
            (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "image_labels.csv").write_text("\n".join(rows) + "\n")
