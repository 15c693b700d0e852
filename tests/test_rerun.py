"""Stages that are computed again: the old result stays until then, and nothing stale is taken.

What does not need networks is in tests/test_store_run.py.
"""

import json
import shutil
from pathlib import Path

import pytest
from quick_run import folder_run, make_learnable_tree

from ribseg.errors import ConfigError
from ribseg.store.artefact import MANIFEST

RUN = ("run=[classifier,cam,rib,evaluate]", "rib.lr=1e-3")


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A folder with a finished run in it, and with the controls."""
    folder = tmp_path_factory.mktemp("computed")
    tree = make_learnable_tree(folder / "tree")
    results = folder_run(folder, tree, *RUN)
    shutil.copytree(folder / "store", folder / "plain")
    folder_run(folder, tree, *RUN, "run=[classifier,cam,rib,controls,evaluate]")
    return folder, results


@pytest.fixture
def first(computed, tmp_path):
    """The results of a run that is in the test's store."""
    shutil.copytree(computed[0] / "plain", tmp_path / "store")
    return computed[1] | {"store": moved(computed[1]["store"], tmp_path)}


@pytest.fixture
def with_controls(computed, tmp_path):
    """The same with controls."""
    shutil.copytree(computed[0] / "store", tmp_path / "store")


def moved(store, folder):
    return {name: str(folder / "store" / Path(place).name) for name, place in store.items()}


def reruns(results):
    """Stage -> how often it was computed again."""
    return {name: json.loads(Path(p, MANIFEST).read_text())["reruns"] for name, p in results["store"].items()}


def test_a_stage_and_what_depends_on_it_are_computed_again(tmp_path, tree, first):
    again = folder_run(tmp_path, tree, *RUN, "rerun=[rib]")
    assert again["store"] == first["store"]
    assert again["localization"] == first["localization"]
    assert reruns(again) == {"classifier": 0, "cam": 0, "rib": 1, "evaluate": 1}
    assert not list((tmp_path / "store").glob("*.new"))
    assert not list((tmp_path / "store").glob("*.old"))
    third = folder_run(tmp_path, tree, *RUN)
    assert reruns(third) == reruns(again)


@pytest.mark.usefixtures("with_controls")
def test_stale_results_are_not_taken_as_inputs(tmp_path, tree):
    folder_run(tmp_path, tree, "run=[classifier]", "rib.lr=1e-3", "rerun=[classifier]")
    with pytest.raises(ConfigError, match="evaluate"):
        folder_run(tmp_path, tree, "run=[evaluate]", "rib.lr=1e-3")


@pytest.mark.usefixtures("with_controls")
def test_stale_maps_are_left_out_of_an_evaluation(tmp_path, tree):
    results = folder_run(tmp_path, tree, "rib.lr=1e-3", "run=[classifier,cam,evaluate]", "rerun=[classifier]")
    assert set(results["localization"]) == {"cam", "centre_prior", "whole_image"}


def test_a_stage_that_does_not_run_cannot_run_again(tmp_path, tree):
    with pytest.raises(ConfigError, match=r"rerun=.*cam.*run="):
        folder_run(tmp_path, tree, "run=[classifier]", "rerun=[cam]")
    with pytest.raises(ConfigError, match="nonsense"):
        folder_run(tmp_path, tree, "run=[classifier]", "rerun=[nonsense]")
