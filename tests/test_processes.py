"""`train.py` as a process: killed and started again, and as two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from quick_run import QUICK, make_learnable_tree

REPOSITORY = Path(__file__).parents[1]
IMAGES = 24
SETTINGS = [*QUICK, "rib.lr=1e-3", "rib.references=2", "run=[classifier,rib]"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A data set, and a store with an uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("processes")
    make_learnable_tree(folder / "tree", IMAGES)
    train(folder, "whole").check_returncode()
    return folder


def command(folder, store, *extra):
    paths = [
        f"data.root={folder / 'tree'}",
        f"store.root={folder / store}",
        f"hydra.run.dir={folder / 'run'}",
    ]
    return [sys.executable, str(REPOSITORY / "train.py"), "experiment=rib_folder", *SETTINGS, *paths, *extra]


def train(folder, store, *extra):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(folder, store, *extra),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def rib_maps(folder, store):
    files = (folder / store).glob("rib-*/maps/*.npz")
    return {path.name: path.read_bytes() for path in files}


def copy_classifier(folder, store):
    """Bytes can only be compared under the same weights; those of a training in two processes differ."""
    for artefact in (folder / "whole").glob("classifier-*"):
        shutil.copytree(artefact, folder / store / artefact.name)


@pytest.mark.slow
def test_kill_during_rib_and_go_on_gives_the_same_bytes(base):
    copy_classifier(base, "killed")
    process = subprocess.Popen(
        command(base, "killed", "rib.steps=2"), cwd=base, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not rib_maps(base, "killed") and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(rib_maps(base, "killed"))
    assert 1 <= done < IMAGES
    assert not list((base / "killed").glob("rib-*/manifest.json"))
    again = train(base, "killed")
    assert again.returncode == 0, again.stderr
    assert f"{done} of {IMAGES} images are done" in again.stdout
    assert rib_maps(base, "killed") == rib_maps(base, "whole")


@pytest.mark.slow
def test_two_processes_give_the_same_bytes_as_one(base):
    copy_classifier(base, "two")
    two = train(base, "two", "trainer.devices=2", "trainer.strategy=ddp", "run=[classifier,cam,rib,evaluate]")
    assert two.returncode == 0, two.stderr
    assert rib_maps(base, "two") == rib_maps(base, "whole")
    (artefact,) = (base / "two").glob("rib-*")
    assert len(list(artefact.glob("records-*.jsonl"))) == 2
    assert json.loads((artefact / "manifest.json").read_text())["facts"]["images"] == IMAGES
    assert two.stdout.count("evaluate:") == 1


@pytest.mark.slow
def test_two_processes_train_and_go_through_the_chain(base):
    run = train(
        base, "ddp", "trainer.devices=2", "trainer.strategy=ddp", "run=[classifier,rib,evaluate,report]"
    )
    assert run.returncode == 0, run.stderr
    assert len(rib_maps(base, "ddp")) == IMAGES
    assert (base / "run" / "report.html").is_file()


@pytest.mark.slow
def test_a_sweep_in_two_processes_ends_with_one_table(base):
    copy_classifier(base, "sweep")
    sweep = [f"hydra.sweep.dir={base / 'sweep_out'}", "pooling.threshold=0.3,0.6", "-m"]
    run = train(
        base, "sweep", "trainer.devices=2", "trainer.strategy=ddp", "run=[classifier,rib,evaluate]", *sweep
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Localization maps on val, mIoU in percent") == 1
    assert len(json.loads((base / "sweep_out" / "sweep.json").read_text())) == 2
    assert len(list((base / "sweep").glob("classifier-*"))) == 1
    assert len(list((base / "sweep").glob("rib-*/manifest.json"))) == 2


@pytest.mark.slow
def test_errors_are_one_message_without_a_traceback(base):
    absent = train(base, "bad", "data.root=/nowhere/at/all")
    assert absent.returncode == 1
    assert "Traceback" not in absent.stderr
    assert "/nowhere/at/all" in absent.stderr
    nothing = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), f"hydra.run.dir={base / 'run'}"],
        cwd=base, capture_output=True, text=True,
    )  # fmt: skip
    assert nothing.returncode == 1
    assert "experiment=demo|rib_coco|rib_folder|rib_voc|toy_bottleneck" in nothing.stderr
