"""Stages that are computed again: the old result stays until then, and nothing stale is taken."""

import json
import shutil
from pathlib import Path

import pytest
from quick_run import folder_run, make_learnable_tree

from ribseg.errors import ConfigError
from ribseg.pipeline.stages import maps as stages
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


def test_the_old_result_stays_until_the_new_one_is_there(tmp_path, tree, first, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(stages, "summarize", killed)
        with pytest.raises(KeyboardInterrupt):
            folder_run(tmp_path, tree, *RUN, "rerun=[rib]")
    meanwhile = folder_run(tmp_path, tree, *RUN)
    assert meanwhile["localization"] == first["localization"]
    assert reruns(meanwhile)["rib"] == 0
    # The same command goes on with the maps that it had made.
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").glob("rib-*.new/maps/*.npz")}
    assert len(made) == 10
    again = folder_run(tmp_path, tree, *RUN, "rerun=[rib]")
    assert reruns(again)["rib"] == 1
    new = {p.name: p.stat().st_mtime_ns for p in Path(again["store"]["rib"], "maps").glob("*.npz")}
    assert new == {path.name: stamp for path, stamp in made.items()}


@pytest.mark.usefixtures("first")
def test_a_rerun_that_was_killed_between_two_stages_goes_on_with_the_second(tmp_path, tree, monkeypatch):
    from ribseg.pipeline.stages.evaluate import EvaluateStage

    with monkeypatch.context() as patch:
        patch.setattr(EvaluateStage, "work", killed)
        with pytest.raises(KeyboardInterrupt):
            folder_run(tmp_path, tree, *RUN, "rerun=[rib]")
    again = folder_run(tmp_path, tree, *RUN, "rerun=[rib]")
    assert reruns(again) == {"classifier": 0, "cam": 0, "rib": 1, "evaluate": 1}
    assert reruns(folder_run(tmp_path, tree, *RUN, "rerun=[rib]"))["rib"] == 2


@pytest.mark.usefixtures("first")
def test_what_depends_on_a_stage_that_was_computed_again_alone_is_stale(tmp_path, tree, capsys):
    folder_run(tmp_path, tree, "run=[rib]", "rib.lr=1e-3", "rerun=[rib]")
    capsys.readouterr()
    results = folder_run(tmp_path, tree, *RUN)
    assert "evaluate, again, as rib was" in capsys.readouterr().out
    assert reruns(results) == {"classifier": 0, "cam": 0, "rib": 1, "evaluate": 1}


@pytest.mark.usefixtures("with_controls")
def test_stale_results_are_not_taken_as_inputs(tmp_path, tree):
    folder_run(tmp_path, tree, "run=[classifier]", "rib.lr=1e-3", "rerun=[classifier]")
    with pytest.raises(ConfigError, match="evaluate"):
        folder_run(tmp_path, tree, "run=[evaluate]", "rib.lr=1e-3")


@pytest.mark.usefixtures("with_controls")
def test_stale_maps_are_left_out_of_an_evaluation(tmp_path, tree):
    results = folder_run(tmp_path, tree, "rib.lr=1e-3", "run=[classifier,cam,evaluate]", "rerun=[classifier]")
    assert set(results["localization"]) == {"cam", "centre_prior", "whole_image"}


def test_a_run_says_which_version_computed_what_it_takes(tmp_path, tree, capsys, first):
    manifest = Path(first["store"]["rib"], MANIFEST)
    facts = json.loads(manifest.read_text())
    facts["environment"] |= {"ribseg": "0.0.1", "torch": "2.0"}
    manifest.write_text(json.dumps(facts))
    capsys.readouterr()
    folder_run(tmp_path, tree, *RUN)
    said = " ".join(capsys.readouterr().out.split())
    assert "(computed by ribseg 0.0.1, torch 2.0)" in said
    assert said.count("computed by") == 1


def test_a_stage_that_does_not_run_cannot_run_again(tmp_path, tree):
    with pytest.raises(ConfigError, match=r"rerun=.*cam.*run="):
        folder_run(tmp_path, tree, "run=[classifier]", "rerun=[cam]")
    with pytest.raises(ConfigError, match="nonsense"):
        folder_run(tmp_path, tree, "run=[classifier]", "rerun=[nonsense]")


def killed(*_):
    """Stands for a process that is killed at this place."""
    raise KeyboardInterrupt
