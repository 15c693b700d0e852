"""`train.py` as a process: killed and started again, as two processes, and what it says and leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from quick_run import TRAIN, arguments, make_learnable_tree, settings, train

from ribseg.errors import ConfigError
from ribseg.pipeline.engine.runner import run

IMAGES = 12
THRESHOLD = "pooling.threshold=0.3"
SETTINGS = ("rib.lr=1e-3", "rib.references=2", "refine.variants=[none]", "segmenter.sources=[rib]")
# The batch of a recipe that two processes with two accumulated batches share out.
RECIPE = ("segmenter.batch_size=8", "segmenter.accumulate=2", "segmenter.average=0.9", "logger=csv")
CHAIN = "run=[classifier,cam,rib,pseudo_masks,segmenter,evaluate,report]"
TWO = ("trainer.devices=2", "trainer.strategy=ddp")
TRAINED = ("classifier-", "segmenter_rib-")


def start(folder, store, *overrides, **streams):
    """Starts `train.py` in a process of its own."""
    given = arguments(folder, folder / "tree", *SETTINGS, f"store.root={folder / store}", *overrides)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *given], cwd=folder, env=environment, text=True, **streams)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a data set, where each store has a name."""
    folder = tmp_path_factory.mktemp("processes")
    make_learnable_tree(folder / "tree", IMAGES)
    return folder


@pytest.fixture(scope="module")
def two(base):
    """What a sweep of two jobs in two processes prints; every stage is computed in them."""
    sweep = ("pooling.threshold=0.3,0.6", *TWO, *RECIPE, CHAIN, "-m")
    process = start(base, "two", *sweep, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


@pytest.fixture(scope="module")
def one(base, two):
    """Results of one process with the weights of two, whose training sums its batches otherwise."""
    copy_stages(base, "one", TRAINED)
    return one_process(base, "one", THRESHOLD, *RECIPE, CHAIN)


def one_process(base, store, *overrides):
    """Runs the stages here and returns the results."""
    places = (f"data.root={base / 'tree'}", f"store.root={base / store}")
    return run(settings("rib_folder", base, *SETTINGS, *places, *overrides), base / f"{store}_out")


def copy_stages(base, store, names):
    for artefact in (base / "two").iterdir():
        if artefact.name.startswith(names):
            shutil.copytree(artefact, base / store / artefact.name)


def results_of_two(base, job=0):
    return json.loads((base / "sweep" / str(job) / "results.json").read_text())


def content(folder, pattern):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern)}


def rib_maps(base, store):
    return content(base / store, "rib-*/maps/*.npz")


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(base, two, one):
    for pattern, number in (
        ("cam-*/maps/*.npz", IMAGES),
        ("rib-*/maps/*.npz", IMAGES),
        ("pseudo_masks-*/none/*.png", IMAGES),
        ("segmenter_test_rib-*/val/*.png", 4),
    ):
        ours, theirs = content(base / "one", pattern), content(base / "two", pattern)
        assert len(ours) == number, pattern
        assert ours == {name: theirs[name] for name in ours}, pattern


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(base, two, one):
    both = results_of_two(base)
    for name in ("localization", "pseudo_masks", "segmenter"):
        assert json.loads(json.dumps(one[name])) == both[name]
    artefact = Path(one["store"]["segmenter_test_rib"]).name
    scores = [json.loads((base / store / artefact / "scores.json").read_text()) for store in ("one", "two")]
    assert scores[0] == scores[1]
    assert sum(map(sum, scores[0]["val"]["confusion"])) > 1000
    assert scores[0]["val"]["images"] == 4
    assert 0 <= scores[0]["val"]["miou"] <= 1


@pytest.mark.slow
def test_one_of_two_processes_decides_logs_and_prints(base, two):
    assert two.count("evaluate:") == 2  # once a job
    for artefact in (base / "two").glob("rib-*"):
        assert len(list(artefact.glob("records-*.jsonl"))) == 2
        assert json.loads((artefact / "manifest.json").read_text())["facts"]["images"] == IMAGES
    assert all((artefact / "manifest.json").is_file() for artefact in (base / "two").glob("*-*"))
    for job in ("0", "1"):
        assert (base / "sweep" / job / "report.html").is_file()
    written = {
        str(path.relative_to(base / "sweep" / "0" / "logs"))
        for path in (base / "sweep/0").rglob("metrics.csv")
    }
    assert {"classifier/metrics.csv", "results/metrics.csv"} <= written
    assert not [name for name in written if "version" in name]  # of a second process


@pytest.mark.slow
def test_a_sweep_in_two_processes_trains_once_and_ends_with_one_table(base, two):
    assert two.count("Localization maps on val, mIoU in percent") == 1
    assert len(json.loads((base / "sweep" / "sweep.json").read_text())) == 2
    assert len(list((base / "two").glob("classifier-*"))) == 1
    assert len(list((base / "two").glob("rib-*/manifest.json"))) == 2
    maps = [results_of_two(base, job)["store"]["rib"] for job in (0, 1)]
    assert maps[0] != maps[1]


def test_a_batch_that_two_processes_cannot_share_is_refused(base):
    with pytest.raises(ConfigError, match="does not divide by 2 processes"):
        one_process(base, "refused", THRESHOLD, *TWO, "segmenter.batch_size=3", CHAIN)
    assert not list((base / "refused").glob("classifier-*"))


@pytest.mark.slow
def test_kill_during_rib_and_go_on_gives_the_same_bytes(base, one, capsys):
    copy_stages(base, "killed", TRAINED[:1])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = start(base, "killed", THRESHOLD, "run=[classifier,rib]", **quiet)
    deadline = time.monotonic() + 120
    while not rib_maps(base, "killed") and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(rib_maps(base, "killed"))
    assert 1 <= done < IMAGES
    assert not list((base / "killed").glob("rib-*/manifest.json"))
    one_process(base, "killed", THRESHOLD, "run=[classifier,rib]")
    assert f"{done} of {IMAGES} images are done" in capsys.readouterr().out
    assert rib_maps(base, "killed") == rib_maps(base, "one")


def test_errors_are_one_message_without_a_traceback(base, tmp_path, capfd):
    code = train(arguments(tmp_path, "/nowhere/at/all", *SETTINGS))
    assert "/nowhere/at/all" in code  # a text: Python prints it on standard error and exits with 1
    code = train([str(TRAIN), f"hydra.run.dir={tmp_path / 'run'}"])
    assert "experiment=demo|rib_coco|rib_folder|rib_voc|rib_voc_lite|toy_bottleneck" in code
    assert "Traceback" not in "".join(capfd.readouterr())
