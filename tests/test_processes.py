"""`train.py` as a process: killed and started again, as three processes, and what it says and leaves."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from quick_run import TRAIN, arguments, make_learnable_tree, settings, train
from started import SERVER, start_command, start_ranks, wait_for

from ribseg.errors import ConfigError, RibsegError
from ribseg.pipeline.recipe.processes import Processes, waiting_group
from ribseg.pipeline.run import run

IMAGES = 13  # no multiple of three
THRESHOLD = "pooling.threshold=0.3"
# Batches that three processes share out, and two; those of the segmenter in two accumulated ones each.
BATCHES = ("data.batch_size=6", "segmenter.batch_size=12", "segmenter.accumulate=2")
SETTINGS = (*BATCHES, "rib.lr=1e-3", "rib.references=2", "refine.variants=[none]", "segmenter.sources=[rib]")
RECIPE = ("segmenter.average=0.9", "logger=csv")
CHAIN = "run=[classifier,cam,rib,pseudo_masks,segmenter,evaluate,report]"
THREE = ("trainer.devices=3", "trainer.strategy=ddp")
TWO = ("trainer.devices=2", "trainer.strategy=ddp")
TRAINED = ("classifier-", "segmenter_rib-")


def line(folder, store, *overrides):
    """The command line of `train.py` for a store in the folder of `base`."""
    return arguments(folder, folder / "tree", *SETTINGS, f"store.root={folder / store}", *overrides)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a data set, where each store has a name."""
    folder = tmp_path_factory.mktemp("processes")
    make_learnable_tree(folder / "tree", IMAGES)
    return folder


@pytest.fixture(scope="module")
def three(base):
    """What the first of three processes of torchrun prints; every stage is computed in them."""
    processes = start_ranks(3, line(base, "three", THRESHOLD, *THREE, *RECIPE, CHAIN), base)
    codes = wait_for(processes)
    said = [(base / f"rank-{rank}.txt").read_text() for rank in range(3)]
    assert codes == [0, 0, 0], said
    return said[0]


@pytest.fixture(scope="module")
def one(base, three):
    """Results of one process with the weights of three, whose training sums its batches otherwise."""
    copy_stages(base, "one", TRAINED)
    return one_process(base, "one", THRESHOLD, *RECIPE, CHAIN)


def one_process(base, store, *overrides):
    """Runs the stages here and returns the results."""
    places = (f"data.root={base / 'tree'}", f"store.root={base / store}")
    return run(settings("rib_folder", base, *SETTINGS, *places, *overrides), base / f"{store}_out")


def copy_stages(base, store, names):
    for artefact in (base / "three").iterdir():
        if artefact.name.startswith(names):
            shutil.copytree(artefact, base / store / artefact.name)


def results_of_three(base):
    return json.loads((base / "run" / "results.json").read_text())


def content(folder, pattern):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern)}


def wait_until(happened):
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.002)


def rib_maps(base, store):
    return content(base / store, "rib-*/maps/*.npz")


@pytest.mark.slow
def test_three_processes_give_the_bytes_of_one(base, three, one):
    for pattern, number in (
        ("cam-*/maps/*.npz", IMAGES),
        ("rib-*/maps/*.npz", IMAGES),
        ("pseudo_masks-*/none/*.png", IMAGES),
        ("segmenter_test_rib-*/val/*.png", 4),
    ):
        ours, theirs = content(base / "one", pattern), content(base / "three", pattern)
        assert len(ours) == number, pattern
        assert ours == {name: theirs[name] for name in ours}, pattern


@pytest.mark.slow
def test_three_processes_measure_what_one_measures(base, three, one):
    both = results_of_three(base)
    for name in ("localization", "pseudo_masks", "segmenter"):
        assert json.loads(json.dumps(one[name])) == both[name]
    artefact = Path(one["store"]["segmenter_test_rib"]).name
    scores = [json.loads((base / store / artefact / "scores.json").read_text()) for store in ("one", "three")]
    assert scores[0] == scores[1]
    assert sum(map(sum, scores[0]["val"]["confusion"])) > 1000
    assert scores[0]["val"]["images"] == 4
    assert 0 <= scores[0]["val"]["miou"] <= 1


@pytest.mark.slow
def test_no_image_is_made_twice_or_left_out(base, three):
    for artefact in (*(base / "three").glob("rib-*"), *(base / "three").glob("cam-*")):
        lines = [path.read_text().split("\n") for path in sorted(artefact.glob("records-*.jsonl"))]
        ids = [json.loads(line)["id"] for each in lines for line in each if line]
        assert sorted(ids) == [f"im_{number:02d}" for number in range(IMAGES)]
        assert sorted(len(list(filter(None, each))) for each in lines) == [4, 4, 5]
        assert json.loads((artefact / "manifest.json").read_text())["facts"]["images"] == IMAGES


@pytest.mark.slow
def test_one_of_three_processes_decides_logs_and_prints(base, three):
    assert three.count("evaluate:") == 1
    for rank in (1, 2):
        assert "evaluate:" not in (base / f"rank-{rank}.txt").read_text()
    assert all((artefact / "manifest.json").is_file() for artefact in (base / "three").glob("*-*"))
    assert (base / "run" / "report.html").is_file()
    logs = base / "run" / "logs"
    written = {str(path.relative_to(logs)) for path in logs.rglob("metrics.csv")}
    assert {"classifier/metrics.csv", "results/metrics.csv"} <= written
    assert not [name for name in written if "version" in name]  # of a second process


@pytest.mark.slow
def test_a_process_that_dies_is_named_at_once(base, three):
    """While the first one waits for it; `process_timeout` is far away."""
    copy_stages(base, "died", ("classifier-", "cam-"))
    slow = ("run=[classifier,rib]", "rib.steps=40")
    processes = start_ranks(3, line(base, "died", THRESHOLD, *THREE, *slow), base)
    wait_until(lambda: list((base / "died").glob("rib-*/records-2.jsonl")))
    processes[2].kill()
    start = time.monotonic()
    codes = wait_for(processes)
    assert time.monotonic() - start < 60
    assert codes[2] == -signal.SIGKILL
    assert codes[0] != 0
    assert not list((base / "died").glob("rib-*/manifest.json"))
    said = (base / "rank-0.txt").read_text()
    assert "ribseg: stage rib: process 0 of 3 (counted from 0) waited for process 2, which has ended" in said
    assert "Traceback" not in said


def late(folder, rank):
    """One of three processes, of which the last comes late; notes what it is told."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=3)
    group = Processes(0.05)
    group.running = "rib"
    waiting_group(group.minutes)
    time.sleep(6 if rank == 2 else 0)
    try:
        group.wait()
    except RibsegError as error:
        (folder / f"told-{rank}").write_text(str(error))


def test_a_process_that_is_late_is_named(tmp_path):
    processes = [SERVER.Process(target=late, args=(tmp_path, rank)) for rank in range(3)]
    for process in processes:
        process.start()
    wait_for(processes)
    told = (tmp_path / "told-0").read_text()
    assert (
        "stage rib: process 0 of 3 (counted from 0) waited for process 2, which has ended or is over" in told
    )
    assert "process_timeout=0.05 minutes late" in told
    assert (tmp_path / "told-1").is_file()


@pytest.mark.nightly
def test_a_sweep_in_two_processes_trains_once_and_ends_with_one_table(base):
    """Lightning starts the second process of each job."""
    words = line(base, "swept", "pooling.threshold=0.3,0.6", *TWO, *RECIPE, CHAIN, "-m")
    done = subprocess.run([sys.executable, *words], cwd=base, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("evaluate:") == 2  # once a job
    assert done.stdout.count("Localization maps on val, mIoU in percent") == 1
    assert len(json.loads((base / "sweep" / "sweep.json").read_text())) == 2
    assert len(list((base / "swept").glob("classifier-*"))) == 1
    assert len(list((base / "swept").glob("rib-*/manifest.json"))) == 2
    stores = [json.loads((base / f"sweep/{job}/results.json").read_text())["store"] for job in (0, 1)]
    assert stores[0]["rib"] != stores[1]["rib"]


def test_a_batch_that_two_processes_cannot_share_is_refused(base):
    with pytest.raises(ConfigError, match="does not divide by 2 processes"):
        one_process(
            base, "refused", THRESHOLD, *TWO, "segmenter.batch_size=3", "segmenter.accumulate=1", CHAIN
        )
    assert not list((base / "refused").glob("classifier-*"))


@pytest.mark.slow
def test_kill_during_rib_and_go_on_gives_the_same_bytes(base, one, capsys):
    copy_stages(base, "killed", TRAINED[:1])
    command = line(base, "killed", THRESHOLD, "run=[classifier,rib]")
    process = start_command(command, base, base / "killed.txt")
    wait_until(lambda: rib_maps(base, "killed"))
    process.kill()
    process.join()
    done = len(rib_maps(base, "killed"))
    assert 1 <= done < IMAGES
    assert not list((base / "killed").glob("rib-*/manifest.json"))
    one_process(base, "killed", THRESHOLD, "run=[classifier,rib]")
    found = re.search(rf"(\d+) of {IMAGES} images are done", capsys.readouterr().out)
    assert done <= int(found[1]) < IMAGES  # its processes may have ended an image meanwhile
    assert rib_maps(base, "killed") == rib_maps(base, "one")


def test_errors_are_one_message_without_a_traceback(base, tmp_path, capfd):
    code = train(arguments(tmp_path, "/nowhere/at/all", *SETTINGS))
    assert "/nowhere/at/all" in code  # a text: Python prints it on standard error and exits with 1
    code = train([str(TRAIN), f"hydra.run.dir={tmp_path / 'run'}"])
    assert "experiment=demo|rib_coco|rib_folder|rib_voc|rib_voc_lite|toy_bottleneck" in code
    assert "Traceback" not in "".join(capfd.readouterr())
