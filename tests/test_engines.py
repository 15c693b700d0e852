"""Engines that make the files of single images: Ray's workers, one of them killed, and an own one."""

import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
from quick_run import folder_run, make_learnable_tree

import ribseg
from ribseg.errors import ConfigError, DataError
from ribseg.store.run import LocalEngine

CHAIN = ("run=[classifier,cam,rib,refine,evaluate]", "rib.lr=1e-3", "refine.variants=[none,random_walk]")
RAY = ("engine=ray", "engine.images=2", "engine.workers=2")
ELSEWHERE = ("methods.cam._target_=test_engines.Elsewhere", f"+methods.cam.run={os.getpid()}")
IMAGES = 10


class Elsewhere:
    """CAM, which goes wrong in a worker: not in the process of the run, where it is tried first.

    Args:
        run: process id of the run.
        fuse: kills the worker if this file exists, and removes it; None raises an error of ribseg each time.
    """

    def __init__(self, classifier, run, fuse=None):
        self.classifier, self.run, self.fuse = classifier, run, fuse

    def __call__(self, views, labels):
        if os.getpid() != self.run:
            self.go_wrong()
        return ribseg.cam(self.classifier, views, labels)

    def go_wrong(self):
        if self.fuse is None:
            raise DataError("this image cannot be read")
        if Path(self.fuse).exists():
            Path(self.fuse).unlink()
            os.kill(os.getpid(), signal.SIGKILL)


class Noted(LocalEngine):
    """An engine from outside, that notes what it is asked for."""

    def __init__(self, notes, processes):
        super().__init__(processes)
        self.notes = Path(notes)

    def note(self, line):
        with self.notes.open("a") as file:
            file.write(line + "\n")

    def start(self):
        self.note("start")

    def make(self, stage, target, ids):
        self.note(f"{stage.name} {len(ids)}")
        super().make(stage, target, ids)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tree, and the results of a run in one process."""
    folder = tmp_path_factory.mktemp("whole")
    tree = make_learnable_tree(folder / "tree", IMAGES)
    return folder, tree, folder_run(folder, tree, *CHAIN)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of Ray on this machine, for two workers."""
    ray = pytest.importorskip("ray", reason='needs pip install "ribseg[ray]"')
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def trained(whole, tmp_path):
    """The test's store, with the classifier and the affinity network."""
    for name in ("classifier", "affinity"):
        for place in (whole[0] / "store").glob(f"{name}-*"):
            shutil.copytree(place, tmp_path / "store" / place.name)
    return tmp_path / "store"


def files(store, pattern):
    return {str(path.relative_to(store)): path.read_bytes() for path in store.glob(pattern)}


def test_an_engine_from_outside_makes_maps_and_masks(whole, trained, tmp_path):
    folder, tree, results = whole
    engine = (f"+engine.notes={tmp_path / 'notes'}", "engine._target_=test_engines.Noted")
    ours = folder_run(tmp_path, tree, *CHAIN, *engine)
    notes = (tmp_path / "notes").read_text().splitlines()
    made = ["cam 10", "rib 10", "affinity_labels 6", "random_walk 10", "pseudo_masks 10"]
    assert notes == ["start", *made]
    assert ours["localization"] == results["localization"]
    assert files(trained, "*/maps/*.npz") == files(folder / "store", "*/maps/*.npz")


def assert_as_of_one_process(whole, trained, ours):
    """The files and the scores of a run are those of the run in one process."""
    folder, _, results = whole
    for pattern in ("*/maps/*.npz", "*/labels/*.png", "pseudo_masks-*/*/*.png"):
        theirs = files(folder / "store", pattern)
        assert len(theirs) >= IMAGES - 4
        assert files(trained, pattern) == theirs, pattern
    assert ours["localization"] == results["localization"]
    assert ours["pseudo_masks"] == results["pseudo_masks"]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_give_the_bytes_of_one(whole, trained, tmp_path, processes):
    ours = folder_run(tmp_path, whole[1], *CHAIN, f"engine.processes={processes}")
    assert_as_of_one_process(whole, trained, ours)
    (place,) = trained.glob("rib-*")
    assert 2 <= len(list(place.glob("records-*"))) <= processes


def test_the_images_of_a_killed_process_are_made_again(whole, trained, tmp_path):
    folder, tree, _ = whole
    fuse = tmp_path / "fuse"
    fuse.touch()
    command = (*CHAIN, "run=[classifier,cam,evaluate]", *ELSEWHERE, f"+methods.cam.fuse={fuse}")
    with pytest.warns(match=r"the process \d+ was killed by SIGKILL.*made again, by 1"):
        folder_run(tmp_path, tree, *command, "engine.processes=2")
    assert not fuse.exists()
    (place,) = trained.glob("cam-*")
    made = files(place, "maps/*.npz")
    assert list(made.values()) == list(files(*(folder / "store").glob("cam-*"), "maps/*.npz").values())


@pytest.mark.nightly
def test_workers_of_ray_give_the_bytes_of_one_process(whole, trained, tmp_path, cluster):
    ours = folder_run(tmp_path, whole[1], *CHAIN, *RAY)
    assert_as_of_one_process(whole, trained, ours)
    (place,) = trained.glob("rib-*")
    assert 1 <= len(list(place.glob(f"records-{socket.gethostname()}-*"))) <= 2  # one of each worker
    assert not list(trained.glob("*.lock"))


@pytest.mark.nightly
def test_the_images_of_a_killed_worker_are_made_again(whole, trained, tmp_path, cluster):
    _, tree, _ = whole
    fuse = tmp_path / "fuse"
    fuse.touch()
    command = (*CHAIN, "run=[classifier,cam,evaluate]", *ELSEWHERE, f"+methods.cam.fuse={fuse}")
    folder_run(tmp_path, tree, *command, *RAY)
    assert not fuse.exists()
    (place,) = trained.glob("cam-*")
    made = files(place, "maps/*.npz")
    assert len(made) == IMAGES
    shutil.rmtree(place)
    fuse.touch()  # the digest has its content
    folder_run(tmp_path, tree, *command)
    assert files(place, "maps/*.npz") == made


@pytest.mark.nightly
def test_an_error_of_a_worker_is_that_of_the_run(whole, trained, tmp_path, cluster):
    _, tree, _ = whole
    with pytest.raises(DataError, match="this image cannot be read"):
        folder_run(tmp_path, tree, *CHAIN, *ELSEWHERE, *RAY)
    with pytest.raises(
        ConfigError, match=r"has room for 2 workers with 1 CPUs and 0 GPUs each, not for engine.wo"
    ):
        folder_run(tmp_path, tree, *CHAIN, *RAY, "engine.workers=3")


def test_without_ray_the_run_ends_before_the_first_stage(tmp_path, tree, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r'engine=ray needs Ray: pip install "ribseg\[ray\]"'):
        folder_run(tmp_path, tree, *CHAIN, *RAY)
    assert not list((tmp_path / "store").glob("classifier-*"))


def test_settings_of_ray_out_of_range_are_refused(tmp_path, tree):
    with pytest.raises(ConfigError, match=r"engine.images: expected"):
        folder_run(tmp_path, tree, *CHAIN, "engine=ray", "engine.images=0")
