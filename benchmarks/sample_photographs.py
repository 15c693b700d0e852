"""Writes photographs that may be shipped as a data set, for pictures of real output.

    pip install scikit-image
    python benchmarks/sample_photographs.py outputs/samples
    python train.py experiment=rib_voc_lite data.root=outputs/samples data.train_split=val \
        data.pseudo_split=null "data.eval_splits=[val]" classifier.checkpoint=FILE rib.lr=3.16e-5 \
        "run=[cam,rib,report]"

FILE is the `classifier.safetensors` of the classifier stage of `experiment=rib_voc_lite`. The photographs: a
cat (Stefan van der Walt, CC0), Eileen Collins (NASA, public domain), Grace Hopper (US Navy, public domain).
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from ribseg.data.voc import VOC_CLASSES

LABELS = {"cat": "cat", "astronaut": "person", "grace_hopper": "person"}


def photographs() -> dict[str, np.ndarray]:
    """Name -> (H, W, 3) uint8."""
    import matplotlib
    from skimage import data

    hopper = Image.open(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg")
    return {"cat": data.cat(), "astronaut": data.astronaut(), "grace_hopper": np.asarray(hopper)}


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name in ("JPEGImages", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, image in photographs().items():
        Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.png")
    (folder / "ImageSets/Segmentation/val.txt").write_text("".join(f"{name}\n" for name in LABELS))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in VOC_CLASSES))
    rows = "".join(f"{name},{label}\n" for name, label in LABELS.items())
    (folder / "image_labels.csv").write_text("image,classes\n" + rows)


if __name__ == "__main__":
    main()
