"""What a store promises, seen on toy stages: nothing twice, nothing stale, and kills cost little."""

import json
import os
import signal

import pytest
from toy_stages import ALL, toy_run

from ribseg.errors import ConfigError, RibsegError
from ribseg.store import run as runs
from ribseg.store.artefact import MANIFEST
from ribseg.store.run import LocalEngine
from ribseg.store.shards import Shard
from ribseg.workers import forks

IDS = "abcdefg"
TOTAL = 2 * sum(map(ord, IDS))


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def killed():
    """Stands for a process that is killed at this place."""
    raise KeyboardInterrupt


def stamps(store, pattern="*/*.txt"):
    return {path.name: path.stat().st_mtime_ns for path in sorted(store.glob(pattern))}


def leftovers(store):
    return [path.name for path in store.iterdir() if path.suffix in (".new", ".old", ".lock")]


# Once


def test_each_result_is_computed_once(store):
    first = toy_run(store)
    assert first.did == ["numbers", *(f"files {name}" for name in IDS), "finish files", "total"]
    assert first.facts("total") == {"total": TOTAL}
    before = stamps(store, "*/*")
    second = toy_run(store)
    assert second.did == []
    assert [line.partition(",")[0] for line in second.said] == [f"{name}: in the store" for name in ALL]
    assert stamps(store, "*/*") == before
    assert not leftovers(store)


@pytest.mark.parametrize("change", [{"factor": 3}, {"data": "other"}])
def test_what_a_result_depends_on_names_its_folder_and_those_after_it(store, change):
    first, other = toy_run(store), toy_run(store, **change)
    for name in ALL:
        assert first.folder(name) != other.folder(name)
    assert len(other.did) == len(first.did)
    assert toy_run(store).did == []  # the first is still there


def test_another_version_of_a_stage_is_another_result(store, monkeypatch):
    first = toy_run(store)
    monkeypatch.setattr("toy_stages.Files.version", 2)
    second = toy_run(store)
    assert [first.folder(name) == second.folder(name) for name in ALL] == [True, False, False]


def test_only_what_was_chosen_is_computed_and_only_over_what_is_there(store):
    assert toy_run(store, ["numbers"]).did == ["numbers"]
    with pytest.raises(ConfigError, match=r"stage total needs files, .*run=\[files,total\] makes it"):
        toy_run(store, ["total"])
    assert toy_run(store, ["files", "total"]).facts("total") == {"total": TOTAL}


def test_a_check_that_fails_ends_a_run_before_its_first_stage(store):
    def check():
        raise ConfigError("no total of these")

    with pytest.raises(ConfigError, match="no total") as caught:
        toy_run(store, check=check)
    assert caught.value.done.did == []
    assert toy_run(store, ["numbers", "files"], check=check).did  # what does not run is not checked


# Kills


def test_a_killed_stage_goes_on_with_what_is_missing(store):
    left = iter(range(3))
    with pytest.raises(KeyboardInterrupt):
        toy_run(store, die={"files": lambda: killed() if next(left, None) is None else None})
    made = stamps(store)
    assert list(made) == ["a.txt", "b.txt", "c.txt"]
    again = toy_run(store)
    assert again.did == [*(f"files {name}" for name in "defg"), "finish files", "total"]
    assert "  resuming: 3 of 7 images are done" in again.said
    assert made.items() <= stamps(store).items()
    assert again.facts("total") == {"total": TOTAL}
    assert not leftovers(store)


def test_files_that_are_gone_are_made_again(store):
    first = toy_run(store)
    (first.folder("files") / "c.txt").unlink()
    again = toy_run(store)
    assert again.did == ["files c", "finish files"]
    assert any("files are gone from" in line for line in again.said)
    assert again.facts("total") == {"total": TOTAL}


def test_a_stage_that_fails_gives_its_lock_back_and_has_no_manifest(store):
    def fail():
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        toy_run(store, die={"total": fail})
    assert not leftovers(store)
    assert toy_run(store).did == ["total"]


# Again


def test_a_stage_and_what_depends_on_it_are_computed_again(store):
    first = toy_run(store)
    again = toy_run(store, rerun=["files"])
    assert again.reruns == {"numbers": 0, "files": 1, "total": 1}
    assert again.did == [*(f"files {name}" for name in IDS), "finish files", "total"]
    assert [again.folder(name) for name in ALL] == [first.folder(name) for name in ALL]
    assert not leftovers(store)
    assert toy_run(store).did == []


def test_the_old_result_stays_until_the_new_one_is_there(store):
    toy_run(store)
    with pytest.raises(KeyboardInterrupt):
        toy_run(store, rerun=["files"], die={"finish": killed})
    meanwhile = toy_run(store)
    assert meanwhile.did == []
    assert meanwhile.reruns == dict.fromkeys(ALL, 0)
    # The same command goes on with the files that it had made.
    made = stamps(store, "files-*.new/*.txt")
    assert len(made) == len(IDS)
    again = toy_run(store, rerun=["files"])
    assert again.did == ["finish files", "total"]
    assert again.reruns["files"] == 1
    assert stamps(store) == made


def test_a_rerun_that_was_killed_between_two_stages_goes_on_with_the_second(store):
    toy_run(store)
    with pytest.raises(KeyboardInterrupt):
        toy_run(store, rerun=["files"], die={"total": killed})
    again = toy_run(store, rerun=["files"])
    assert again.did == ["total"]
    assert again.reruns == {"numbers": 0, "files": 1, "total": 1}
    assert toy_run(store, rerun=["files"]).reruns == {"numbers": 0, "files": 2, "total": 2}


def test_what_depends_on_a_stage_that_was_computed_again_alone_is_stale(store):
    toy_run(store)
    toy_run(store, ["files"], rerun=["files"])
    later = toy_run(store)
    assert later.did == ["total"]
    assert any(line.startswith("total, again, as files was: ") for line in later.said)
    assert later.reruns == {"numbers": 0, "files": 1, "total": 1}


def test_stale_results_are_not_taken_as_inputs(store):
    toy_run(store)
    toy_run(store, ["numbers"], rerun=["numbers"])
    with pytest.raises(ConfigError, match=r"stage total needs files"):
        toy_run(store, ["total"])
    assert toy_run(store).reruns == dict.fromkeys(ALL, 1)


def test_a_run_says_which_version_computed_what_it_takes(store):
    manifest = toy_run(store).folder("files") / MANIFEST
    facts = json.loads(manifest.read_text())
    facts["environment"] |= {"ribseg": "0.0.1", "torch": "2.0"}
    manifest.write_text(json.dumps(facts))
    said = toy_run(store).said
    assert sum("computed by" in line for line in said) == 1
    assert said[1].endswith("(computed by ribseg 0.0.1, torch 2.0)")


# Shards


def test_shards_and_a_last_call_give_what_one_call_gives(store, tmp_path):
    whole = toy_run(tmp_path / "whole")
    toy_run(store, ["numbers"])
    first = toy_run(store, [*ALL, "report"], shard="1/3")
    assert first.did == [f"files {name}" for name in "adg"]
    assert "shard: 1/3; left to the last call, without shard: total, report" in first.said
    assert not list(store.glob(f"files-*/{MANIFEST}"))
    assert toy_run(store, shard="1/3").did == []  # it is there
    toy_run(store, shard="3/3")  # shard 2 is lost
    made = stamps(store)
    assert len(made) == 5
    last = toy_run(store)
    assert last.did == ["files b", "files e", "finish files", "total"]
    assert made.items() <= stamps(store).items()
    assert [last.facts(name) for name in ALL] == [whole.facts(name) for name in ALL]
    for path in whole.folder("files").glob("*.txt"):
        assert (last.folder("files") / path.name).read_bytes() == path.read_bytes()
    after = toy_run(store, shard="2/3")  # after the last call
    assert after.did == []
    assert any(line.startswith("files: in the store") for line in after.said)
    assert not leftovers(store)


def test_the_first_stage_of_a_shard_is_whole_and_there_may_be_more_shards_than_images(store):
    assert toy_run(store, shard="99/99").did == ["numbers"]
    assert not list(store.glob("files-*/*.txt"))


def test_a_shard_of_nothing_is_refused(store):
    with pytest.raises(ConfigError, match=r"shard=1/2 would have no effect: none of run=\[numbers\]"):
        toy_run(store, ["numbers"], shard="1/2")


def test_a_shard_is_not_made_again(store):
    toy_run(store)
    said = "files would be made again, and only as a whole: leave shard=1/2 out"
    with pytest.raises(ConfigError, match=said):
        toy_run(store, rerun=["files"], shard="1/2")
    toy_run(store, ["numbers"], rerun=["numbers"])  # the files are older than the numbers
    with pytest.raises(ConfigError, match=said):
        toy_run(store, shard="1/2")


def test_shards_are_all_images_once():
    items = list(range(23))
    parts = [Shard(number, 5).take(items) for number in range(1, 6)]
    assert sorted(item for part in parts for item in part) == items
    assert {len(part) for part in parts} == {4, 5}


# Two runs at once


@pytest.fixture
def meanwhile(monkeypatch):
    """A function: before a run takes the lock of the stage, `act` is called once, as another run would be."""

    def before(stage, act):
        acts, take = [act], runs.locked

        def wait(folder, name, *others):
            if name == stage and acts:
                acts.pop()()
            return take(folder, name, *others)

        monkeypatch.setattr(runs, "locked", wait)

    return before


def test_a_stage_that_was_computed_during_the_wait_is_taken(store, meanwhile):
    others = []
    meanwhile("files", lambda: others.append(toy_run(store)))
    ours = toy_run(store)
    assert ours.did == ["numbers"]
    assert others[0].did[-1] == "total"
    assert sum("in the store" in line for line in ours.said) == 2
    assert ours.facts("total") == {"total": TOTAL}
    assert not leftovers(store)


def test_a_rerun_that_another_run_did_during_the_wait_is_taken(store, meanwhile):
    toy_run(store)
    meanwhile("files", lambda: toy_run(store, rerun=["files"]))
    ours = toy_run(store, rerun=["files"])
    assert ours.did == []
    assert ours.reruns == {"numbers": 0, "files": 1, "total": 1}
    assert not leftovers(store)


# Engines


class Noted(LocalEngine):
    """An engine from outside, that notes what it is asked for and may lose files."""

    def __init__(self, lost=()):
        super().__init__(1)
        self.asked, self.lost = [], lost

    def start(self):
        self.asked.append("start")

    def make(self, stage, target, ids):
        self.asked.append("".join(ids))
        super().make(stage, target, [name for name in ids if name not in self.lost])


def test_an_engine_is_asked_for_what_is_missing_and_started_only_for_that(store):
    engine = Noted()
    toy_run(store, ["numbers"], engine=engine)
    assert engine.asked == []
    toy_run(store, shard="1/3", engine=engine)
    toy_run(store, engine=engine)
    assert engine.asked == ["start", "adg", "start", "bcef"]
    toy_run(store, engine=engine)
    assert engine.asked[4:] == []


def test_an_engine_that_loses_files_ends_the_run(store):
    with pytest.raises(RibsegError, match="1 of 7 images still have no files"):
        toy_run(store, engine=Noted(lost="e"))
    assert toy_run(store).did == ["files e", "finish files", "total"]


@pytest.mark.skipif(not forks(), reason="processes are not copies here")
@pytest.mark.parametrize("processes", [2, 3, 64])
def test_processes_make_the_files_of_one(store, tmp_path, processes):
    one, several = toy_run(store), toy_run(tmp_path / "other", engine=LocalEngine(processes))
    assert several.did[1:] == [f"{min(processes, 7)} processes, 1 threads each", "finish files", "total"]
    assert several.facts("total") == one.facts("total")


@pytest.mark.skipif(not forks(), reason="processes are not copies here")
def test_the_files_of_a_process_that_is_killed_are_made_again(store, tmp_path):
    fuse = tmp_path / "fuse"
    fuse.touch()

    def die():
        if fuse.exists():
            fuse.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.warns(match=r"the process \d+ was killed by SIGKILL.*engine\.processes.*made again, by 1"):
        done = toy_run(store, engine=LocalEngine(2), die={"files": die})
    assert done.did[-1] == "total"
    assert done.facts("files") == {"files": 7}


@pytest.mark.skipif(not forks(), reason="processes are not copies here")
def test_processes_that_are_killed_again_and_again_end_the_run(store):
    die = {"files": lambda: os.kill(os.getpid(), signal.SIGKILL)}
    with (
        pytest.warns(match="SIGKILL"),
        pytest.raises(RibsegError, match="Tried 4 times; finished files are kept"),
    ):
        toy_run(store, engine=LocalEngine(2), die=die)


@pytest.mark.skipif(not forks(), reason="processes are not copies here")
def test_an_error_in_a_process_is_that_of_the_run_and_the_rest_is_kept(store):
    def fail():
        raise RibsegError("this image cannot be read")

    with pytest.raises(RibsegError, match="this image cannot be read"):
        toy_run(store, engine=LocalEngine(2), die={"files": fail})
    assert toy_run(store).did[-1] == "total"
