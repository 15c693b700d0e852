"""Pipelines from Python."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from quick_run import QUICK, make_learnable_tree

import ribseg
from ribseg.data import VOCFolder
from ribseg.errors import ConfigError


def test_train_runs_an_experiment_and_returns_its_results(tmp_path):
    tree = make_learnable_tree(tmp_path / "tree")
    places = [f"data.root={tree}", f"store.root={tmp_path / 'store'}", f"hydra.run.dir={tmp_path / 'run'}"]
    results = ribseg.train("rib_folder", [*QUICK, *places, "run=[classifier,cam,evaluate]"])
    assert results == json.loads((tmp_path / "run/results.json").read_text())
    assert "cam" in results["localization"]
    saved = OmegaConf.load(tmp_path / "run/.hydra/config.yaml")
    assert saved.data.root == str(tree)
    assert "hydra" not in saved
    classifier = ribseg.load(Path(results["store"]["classifier"]) / "classifier.safetensors")
    assert classifier.classes == VOCFolder(tree, "train").classes
    maps = ribseg.localize(tree / "JPEGImages/im_00.jpg", [0], classifier, overrides=["data.scales=[1,0.5]"])
    assert maps.names == (classifier.classes[0],)


def test_what_cannot_work_is_raised_not_exited(tmp_path):
    with pytest.raises(ConfigError, match="cannot be used as settings"):
        ribseg.train("no_such_experiment")
    with pytest.raises(ConfigError, match="cannot be used as settings"):
        ribseg.train("rib_folder", ["rib.nonsense=1"])
