"""`shard=2/3`: parts of the images by separate calls, and a last call that makes what is missing.

What does not need images is in tests/test_store_run.py.
"""

import multiprocessing
import shutil
from pathlib import Path

import pytest
from quick_run import folder_run

from ribseg.checks import SettingError
from ribseg.errors import ConfigError
from ribseg.store import locks
from ribseg.store.locks import locked, locked_part
from ribseg.store.shards import Shard

FORK = multiprocessing.get_context("fork")
CHAIN = (
    "run=[classifier,cam,rib,refine,evaluate]",
    "rib.lr=1e-3",
    "refine.variants=[none,random_walk]",
)
IMAGES = 10
PART = "shard-1-of-2"


def files(store, pattern):
    return {str(path.relative_to(store)): path.read_bytes() for path in store.glob(pattern)}


def maps_of(store, stage):
    return files(store, f"{stage}-*/maps/*.npz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tree, and the results of a run without shards."""
    from quick_run import make_learnable_tree

    folder = tmp_path_factory.mktemp("whole")
    tree = make_learnable_tree(folder / "tree", IMAGES)
    return folder, tree, folder_run(folder, tree, *CHAIN)


@pytest.fixture
def trained(whole, tmp_path):
    """The test's store, with the classifier alone."""
    for place in (whole[0] / "store").glob("classifier-*"):
        shutil.copytree(place, tmp_path / "store" / place.name)
    return tmp_path / "store"


def test_shards_and_a_last_call_give_the_bytes_of_one_call(whole, trained, tmp_path, capsys):
    folder, tree, results = whole
    folder_run(tmp_path, tree, *CHAIN, "shard=1/3")
    said = " ".join(capsys.readouterr().out.split())
    assert "left to the last call, without shard: affinity_labels, affinity, random_walk" in said
    assert {len(maps_of(trained, stage)) for stage in ("cam", "rib")} == {4}
    assert not list(trained.glob("[cr][ai][mb]-*/manifest.json"))
    folder_run(tmp_path, tree, *CHAIN, "shard=3/3")  # shard 2 is lost
    assert {len(maps_of(trained, stage)) for stage in ("cam", "rib")} == {7}
    before = {path: path.stat().st_mtime_ns for path in trained.glob("rib-*/maps/*.npz")}
    last = folder_run(tmp_path, tree, *CHAIN)
    assert before.items() <= {p: p.stat().st_mtime_ns for p in trained.glob("rib-*/maps/*.npz")}.items()
    for pattern in ("*/maps/*.npz", "*/labels/*.png", "pseudo_masks-*/*/*.png"):
        assert files(trained, pattern) == files(folder / "store", pattern), pattern
    records = {path.name for path in trained.glob("rib-*/records-*")}
    parts = ("shard-1-of-3-", "shard-3-of-3-", "")  # which may be written at the same time
    assert records == {f"records-{part}0.jsonl" for part in parts}
    assert last["localization"] == results["localization"]
    assert last["pseudo_masks"] == results["pseudo_masks"]
    for name in ("cam", "rib"):
        ours, theirs = (
            dict(one["methods"][name], seconds_per_image=0, peak_gib=0) for one in (last, results)
        )
        assert ours == theirs
    assert not list(trained.glob("*.lock"))


def test_labels_walk_and_masks_are_made_in_shards(whole, tmp_path):
    folder, tree, _ = whole
    shutil.copytree(folder / "store", tmp_path / "store")
    later = ("affinity_labels", "random_walk", "pseudo_masks")
    for stage in later:
        (place,) = (tmp_path / "store").glob(f"{stage}-*")
        shutil.rmtree(place)
    store = tmp_path / "store"
    for stage, pattern in zip(later, ("labels/*.png", "maps/*.npz", "*/*.png"), strict=True):
        folder_run(tmp_path, tree, *CHAIN, f"run=[{stage}]", "shard=2/2")
        theirs = files(folder / "store", f"{stage}-*/{pattern}")
        made = files(store, f"{stage}-*/{pattern}")
        assert made.items() < theirs.items()
        assert 0.4 <= len(made) / len(theirs) <= 0.5
        folder_run(tmp_path, tree, *CHAIN, f"run=[{stage}]")
        assert files(store, f"{stage}-*/{pattern}") == theirs


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "-1/3", "1/0", "a/b", "1/3/5", "[1,3]"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(SettingError, match="expected shard=NUMBER/OF"):
        Shard.parse(text)


def test_what_is_no_shard_is_refused_before_the_first_stage(tmp_path, tree):
    with pytest.raises(ConfigError, match="expected shard=NUMBER/OF"):
        folder_run(tmp_path, tree, *CHAIN, "shard=4/3")
    assert not list((tmp_path / "store").glob("*-*"))


def hold(lock, arguments, begun, go):
    with lock(*arguments, "cam", print):
        begun.set()
        assert go.wait(60)


@pytest.fixture
def holder():
    """A function that starts a process which holds a lock until the returned event; ended after the test."""
    started = []

    def start(lock, *arguments):
        begun, go = FORK.Event(), FORK.Event()
        started.append(FORK.Process(target=hold, args=(lock, arguments, begun, go)))
        started[-1].start()
        assert begun.wait(60)
        return started[-1], go

    yield start
    for process in started:
        process.kill()
        process.join()


def at_first_wait(monkeypatch, act):
    acts, sleep = [act], locks.time.sleep
    monkeypatch.setattr(locks.time, "sleep", lambda _: (acts.pop()() if acts else None, sleep(0.01)))
    return acts


def fail(line):
    raise AssertionError(line)


def test_two_parts_do_not_wait_for_each_other(tmp_path, holder):
    holder(locked_part, tmp_path / "cam-1", "shard-1-of-2")
    with locked_part(tmp_path / "cam-1", "shard-2-of-2", "cam", fail):
        pass


@pytest.mark.parametrize("parts", [(PART, PART), (PART, None), (None, PART)])
def test_equal_parts_and_the_whole_wait_and_say_for_what(tmp_path, holder, monkeypatch, parts):
    def lock(part):
        return (locked, tmp_path / "cam-1") if part is None else (locked_part, tmp_path / "cam-1", part)

    process, go = holder(*lock(parts[0]))
    waited = at_first_wait(monkeypatch, go.set)
    said = []
    take, *arguments = lock(parts[1])
    with take(*arguments, "cam", said.append):
        assert not waited
    (line,) = said
    assert f"which process {process.pid} on" in line
    process.join()
    assert not list(tmp_path.glob("*.lock"))


def test_a_killed_part_holds_nothing(tmp_path, holder):
    process, _ = holder(locked_part, tmp_path / "cam-1", "shard-1-of-2")
    process.kill()
    process.join()
    assert [path.name for path in tmp_path.glob("*.lock")] == ["cam-1.shard-1-of-2.lock"]
    with locked(tmp_path / "cam-1", "cam", fail):
        pass
    assert not list(Path(tmp_path).glob("*.lock"))
