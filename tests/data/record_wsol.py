"""Records what the published program measures on a few fabricated maps, in wsol.npz.

    python tests/data/record_wsol.py FOLDER

FOLDER is a checkout of github.com/clovaai/wsolevaluation (MIT; recorded at commit 96f4b88); it needs munch.
Its `evaluate_wsol` reads files of maps, boxes and masks of 224 x 224 pixels, written here, and is run as it
is, once for each IoU of the boxes (all contours) and once for masks. `tests/test_localization_metrics.py`
compares.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

RECORD = Path(__file__).with_name("wsol.npz")
SIDE, CELLS, NUMBER = 224, 14, 16
INTERVALS = (0.001, 0.01)
LIMITS = (30, 50, 70)


def fabricated():
    """(N, 14, 14) float32 maps in [0, 1], uint8 masks of 0, 1, 255, and N lists of boxes x0, y0, x1, y1."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:CELLS, :CELLS]
    maps, masks, boxes = [], [], []
    for _ in range(NUMBER):
        top, left = generator.integers(0, 6, 2)
        high, wide = generator.integers(4, 9, 2)
        inside = (rows >= top) & (rows < top + high) & (columns >= left) & (columns < left + wide)
        centre = top + generator.uniform(0, high), left + generator.uniform(0, wide)
        hill = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / generator.uniform(8, 40))
        body = generator.uniform(0.1, 0.5) * inside
        scores = (0.6 * hill + body + generator.uniform(0, 0.25, hill.shape)).astype(np.float32)
        maps.append((scores - scores.min()) / (scores.max() - scores.min()))
        masks.append(np.where(inside, 1, 0).astype(np.uint8))
        masks[-1][rows == top + high] = 255
        scale = SIDE // CELLS
        boxes.append([[left * scale, top * scale, (left + wide) * scale - 1, (top + high) * scale - 1]])
    boxes[0].append([150, 150, 200, 223])  # an image with two boxes
    return np.stack(maps), np.stack(masks), [np.array(each) for each in boxes]


def large(cells):
    """Cells as 224 x 224 pixels."""
    scale = SIDE // CELLS
    return cells.repeat(scale, -2).repeat(scale, -1)


def write(place, maps, masks, boxes):
    """The files of `evaluate_wsol`: maps, and lists for boxes (CUB) and masks (OpenImages)."""
    names = [f"im_{number}" for number in range(len(maps))]
    for kind in ("CUB", "OpenImages"):
        (place / kind / "test").mkdir(parents=True)
        (place / kind / "test" / "image_ids.txt").write_text("\n".join(names) + "\n")
        (place / kind / "test" / "image_sizes.txt").write_text("".join(f"{n},{SIDE},{SIDE}\n" for n in names))
    lines = [",".join(map(str, (n, *box))) for n, each in zip(names, boxes, strict=True) for box in each]
    (place / "CUB" / "test" / "localization.txt").write_text("\n".join(lines) + "\n")
    (place / "OpenImages" / "test" / "localization.txt").write_text(
        "".join(f"{n},{n}.png,{n}_ignore.png\n" for n in names)
    )
    for name, scores, mask in zip(names, large(maps), large(masks), strict=True):
        np.save(place / f"{name}.npy", scores)
        Image.fromarray((mask == 1).astype(np.uint8) * 255).save(place / "OpenImages" / f"{name}.png")
        Image.fromarray((mask == 255).astype(np.uint8) * 255).save(
            place / "OpenImages" / f"{name}_ignore.png"
        )


def published(program):
    """Name -> what the program measures: a fraction for each limit and interval, or for each interval."""
    np.float = float  # the program is older than numpy 1.24
    sys.path.insert(0, program)
    from evaluation import evaluate_wsol

    maps, masks, boxes = fabricated()
    found = {"maps": maps, "masks": masks, "intervals": np.array(INTERVALS), "limits": np.array(LIMITS) / 100}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), maps, masks, boxes)

        def measure(kind, limits, interval):
            return evaluate_wsol(
                scoremap_root=folder,
                metadata_root=folder,
                mask_root=folder,
                dataset_name=kind,
                split="test",
                multi_contour_eval=True,
                multi_iou_eval=True,
                iou_threshold_list=limits,
                cam_curve_interval=interval,
            )

        found["box_accuracy"] = np.array(
            [[measure("CUB", [limit], interval) / 100 for limit in LIMITS] for interval in INTERVALS]
        )
        found["max_box_acc_v2"] = np.array([measure("CUB", list(LIMITS), i) / 100 for i in INTERVALS])
        found["pxap"] = np.array([measure("OpenImages", list(LIMITS), i) / 100 for i in INTERVALS])
    return found | {f"boxes_{number}": each for number, each in enumerate(boxes)}


if __name__ == "__main__":
    np.savez_compressed(RECORD, **published(sys.argv[1]))
