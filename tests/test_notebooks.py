"""The notebooks run from top to bottom, on small data, and are committed without outputs."""

import json
from pathlib import Path

import matplotlib
import pytest
import torch

import ribseg
from ribseg.data.demo import make_demo_dataset

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
BACKBONE = {"channels": (32, 64, 128, 192), "stem_width": 16}


@pytest.fixture
def repository(tmp_path):
    """What `python train.py experiment=demo` leaves, as far as the notebooks read it."""
    make_demo_dataset(tmp_path / "outputs/demo_data/seed-0", train=8, val=4)
    classifier = ribseg.Classifier("resnet10t", 8, output_stride=8, weights="demo", backbone_kwargs=BACKBONE)
    folder = tmp_path / "outputs/store/classifier-0"
    folder.mkdir(parents=True)
    torch.save(classifier.state_dict(), folder / "classifier.pt")
    return tmp_path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, repository):
    matplotlib.use("Agg")
    notebook = json.loads(path.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    names = {}
    for cell in cells:
        source = "".join(cell["source"]).replace('Path("..")', f'Path("{repository}")')
        exec(compile(source, str(path), "exec"), names)
    assert len(names["maps"]) == 4
    assert names["maps"][-1].shape == names["image"].shape[:2]


def test_there_are_notebooks():
    assert NOTEBOOKS
