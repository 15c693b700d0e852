"""The notebooks run from top to bottom, on small data, and are committed without outputs."""

import json
import math
from pathlib import Path

import matplotlib
import pytest

import ribseg
from ribseg.data.demo.images import make_demo_dataset

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
BACKBONE = {"channels": (32, 64, 128, 192), "stem_width": 16}
# What makes a notebook quick; each must be there, or the notebook has changed and runs at full size.
SMALL = {
    "01_information_bottleneck": [
        ("IMAGES, EPOCHS, MEASURED = 1500, 6, 12", "IMAGES, EPOCHS, MEASURED = 8, 1, 6")
    ],
    "02_rib_on_your_images": [],
    "03_pooling_ablation": [("IMAGES, EPOCHS, MEASURED = 1500, 6, 10", "IMAGES, EPOCHS, MEASURED = 8, 1, 2")],
}


@pytest.fixture
def repository(tmp_path):
    """What `python train.py experiment=demo` leaves, as far as the notebooks read it."""
    make_demo_dataset(tmp_path / "outputs/demo_data/seed-0", train=8, val=4)
    classifier = ribseg.Classifier("resnet10t", 8, output_stride=8, weights="demo", backbone_kwargs=BACKBONE)
    folder = tmp_path / "outputs/store/classifier-0"
    folder.mkdir(parents=True)
    classifier.save(folder / "classifier.safetensors")
    return tmp_path


def run_notebook(path, repository):
    """Runs the code cells one after the other in one namespace, as a fresh kernel would."""
    matplotlib.use("Agg")
    notebook = json.loads(path.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    sources = ["".join(cell["source"]) for cell in cells]
    for old, new in SMALL[path.stem]:
        assert any(old in source for source in sources), f"{path.name} no longer says {old!r}"
        sources = [source.replace(old, new) for source in sources]
    names = {}
    for source in sources:
        source = source.replace('Path("..")', f'Path("{repository}")')
        exec(compile(source, str(path), "exec"), names)
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, repository):
    CHECKS[path.stem](run_notebook(path, repository))
    matplotlib.pyplot.close("all")


def check_bottleneck(names):
    assert {len(line) for line in (*names["before"].values(), *names["after"].values())} == {6}
    assert names["before"]["irrelevant"] != names["after"]["irrelevant"]
    assert [gradient.shape for gradient in names["own"]] == [(1, 3, 64, 64)] * 4


def check_rib(names):
    assert len(names["maps"]) == 4
    assert names["maps"][-1].full.shape[1:] == names["image"].shape[:2]


def check_pooling(names):
    for table in (names["toy"], names["demo"]):
        assert len(table) == 1 + len(names["POOLINGS"])
        values = [value for row in table.values() for value in row]
        assert all(math.isnan(value) or 0 <= value <= 1 for value in values)
    assert names["demo"]["CAM"] != names["demo"]["GAP"]


CHECKS = {
    "01_information_bottleneck": check_bottleneck,
    "02_rib_on_your_images": check_rib,
    "03_pooling_ablation": check_pooling,
}


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == set(CHECKS) == set(SMALL)
