"""The files in examples/, used as their first lines say: from outside the package, by `_target_` alone."""

import json
from pathlib import Path

import pytest
from PIL import Image
from quick_run import folder_run

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_an_own_method_takes_part_in_everything(tmp_path, tree):
    width = Image.open(picture(tmp_path, tree, "plain")).size[0]
    own = ("+methods.jittered._target_=own_method.JitteredCAM", "+methods.jittered.noise=0.5")
    segmenter = ("segmenter.sources=[jittered]", "refine.variants=[none]", "rib.lr=1e-3")
    run = "run=[classifier,methods,evaluate,pseudo_masks_jittered,segmenter,report]"
    results = folder_run(tmp_path, tree, *own, *segmenter, run)
    assert {"cam", "rib", "jittered"} <= set(results["localization"])
    assert results["localization"]["jittered"]["label"] == "jittered"
    assert results["localization"]["jittered"]["best_miou"] != results["localization"]["cam"]["best_miou"]
    assert results["methods"]["jittered"]["images"] == 10
    assert 0 <= results["segmenter"]["jittered"]["miou"] <= 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert ">jittered<" in page
    assert "pseudo masks of jittered" in page
    assert Image.open(tmp_path / "out" / "grid.png").size[0] > width
    manifest = json.loads((Path(results["store"]["jittered"]) / "manifest.json").read_text())
    assert set(manifest["settings"]["sources"]) == {"own_method.JitteredCAM"}


def picture(tmp_path, tree, name):
    """The picture grid of a run without the example."""
    folder_run(tmp_path, tree, "run=[classifier,methods,report]", "rib.lr=1e-3", output=name)
    return tmp_path / name / "grid.png"


def test_an_own_pooling_changes_the_maps_of_rib(tmp_path, tree):
    own = ("pooling=gap", "pooling._target_=own_pooling.TopShare", "+pooling.share=0.1")
    run = ("run=[classifier,rib,evaluate]", "rib.lr=1e-1")
    plain = folder_run(tmp_path, tree, "pooling=gap", *run)
    results = folder_run(tmp_path, tree, *own, *run)
    assert results["localization"]["rib"] != plain["localization"]["rib"]
    assert results["store"]["classifier"] == plain["store"]["classifier"]


def test_a_method_that_is_left_out_is_not_there(tmp_path, tree):
    results = folder_run(
        tmp_path,
        tree,
        "methods.rib=null",
        "methods.wrong_class=null",
        "refine.maps=cam",
        "run=[classifier,methods,controls,evaluate]",
    )
    assert set(results["localization"]) == {"cam", "feature_norm", "centre_prior", "whole_image"}
