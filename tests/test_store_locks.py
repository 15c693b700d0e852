"""Runs that share a store: one computes, the others wait and take; a process that dies holds nothing."""

import errno
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch.distributed as dist
from quick_run import arguments, make_learnable_tree, settings

from ribseg.errors import RibsegError
from ribseg.pipeline.plan import KINDS
from ribseg.pipeline.recipe.processes import Processes
from ribseg.pipeline.recipe.session import Session
from ribseg.store import locks
from ribseg.store.artefact import Artefact, Store
from ribseg.store.locks import StoreLock, locked

FORK = multiprocessing.get_context("fork")
RUN = ("run=[classifier,cam,rib,evaluate]", "rib.lr=1e-3")


@pytest.fixture
def artefact(tmp_path):
    return Store(tmp_path / "store").artefact("rate", {"a": 1}, {}, "data")


@pytest.fixture
def processes():
    """A function that starts a process; all are ended after the test."""
    started = []

    def start(work, *values):
        started.append(FORK.Process(target=work, args=values))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.join()


def lock_files(artefact):
    return list(artefact.folder.parent.glob("*.lock"))


def fail():
    raise AssertionError("computed a second time")


def compute_when_told(artefact, begun, go):
    """Computes an artefact, from `begun` until `go`."""

    def work():
        begun.set()
        assert go.wait(60)
        return {"by": os.getpid()}

    artefact.compute(work, print)


def holder(processes, artefact):
    """A process that holds the artefact's lock, and the event that lets it finish."""
    begun, go = FORK.Event(), FORK.Event()
    process = processes(compute_when_told, artefact, begun, go)
    assert begun.wait(60)
    return process, go


def when_waiting(monkeypatch, act):
    """Calls `act` when this process first waits for a lock."""
    acts, sleep = [act], time.sleep
    monkeypatch.setattr(locks.time, "sleep", lambda _: (acts.pop()() if acts else None, sleep(0.01)))


def test_one_process_computes_and_the_other_waits_says_so_and_takes(artefact, processes, monkeypatch):
    process, go = holder(processes, artefact)
    said = []
    when_waiting(monkeypatch, go.set)
    artefact.compute(fail, said.append)
    assert artefact.facts == {"by": process.pid}
    (line,) = said
    host, now = re.escape(os.uname().nodename), r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(
        f"waiting for rate, which process {process.pid} on {host} has been computing since {now}", line
    )
    process.join()
    assert not lock_files(artefact)


def test_a_killed_process_holds_no_lock(artefact, processes, monkeypatch):
    process, _ = holder(processes, artefact)
    when_waiting(monkeypatch, process.kill)
    said = []
    artefact.compute(lambda: {"by": "us"}, said.append)
    assert artefact.facts == {"by": "us"}
    assert len(said) == 1
    assert not lock_files(artefact)


def test_what_a_killed_process_leaves_is_locked_again(artefact, processes):
    process, _ = holder(processes, artefact)
    process.kill()
    process.join()
    (left,) = lock_files(artefact)
    assert left.name == f"{artefact.folder.name}.lock"
    artefact.compute(lambda: {"by": left.read_text()}, fail)
    assert artefact.facts["by"].startswith(f"process {os.getpid()} on ")
    assert not lock_files(artefact)


def leave_a_worker(artefact, told):
    """Takes the lock and forks a worker that outlives it."""
    assert StoreLock(artefact.folder, "rate", print).acquire()
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    told.send(worker)
    time.sleep(60)


def test_a_worker_that_outlives_a_killed_process_holds_no_lock(artefact, processes):
    ours, theirs = FORK.Pipe()
    process = processes(leave_a_worker, artefact, theirs)
    worker = ours.recv()
    process.kill()
    process.join()
    try:
        lock = StoreLock(artefact.folder, "rate", fail)
        assert lock.acquire()
        lock.release()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_interrupted_while_waiting(artefact, processes, monkeypatch):
    _, go = holder(processes, artefact)

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    when_waiting(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        artefact.compute(fail, lambda text: None)
    assert len(lock_files(artefact)) == 1  # the other's
    go.set()


def test_a_failed_computation_gives_the_lock_back(artefact):
    with pytest.raises(AssertionError):
        artefact.compute(fail, fail)
    assert not lock_files(artefact)
    artefact.compute(lambda: {"by": "us"}, fail)


def test_the_same_thread_may_ask_twice(artefact):
    with locked(artefact.folder, "rate", fail), locked(artefact.folder, "rate", fail):
        pass
    with locked(artefact.folder, "rate", fail):
        artefact.compute(lambda: {"by": "us"}, fail)
        assert len(lock_files(artefact)) == 1  # still held
    assert not lock_files(artefact)


def test_other_threads_wait(artefact, monkeypatch):
    done, said = [], []
    thread = threading.Thread(target=lambda: done.append(artefact.compute(fail, said.append)))

    def work():
        when_waiting(monkeypatch, lambda: None)
        thread.start()
        while not said:
            threading.Event().wait(0.01)
        return {}

    artefact.compute(work, fail)
    thread.join(60)
    assert done == [None]
    assert f"process {os.getpid()} " in said[0]


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("name", ["file system", "Windows"])
def test_where_there_are_no_locks_it_is_said_once(artefact, monkeypatch, name):
    if name == "Windows":
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    said = []
    artefact.compute(lambda: {}, said.append)
    Artefact("pool", artefact.folder.with_name("pool-1"), {}).compute(lambda: {}, said.append)
    (line,) = said
    assert str(artefact.folder.parent) in line
    assert "cannot be locked" in line
    assert not lock_files(artefact)


def test_other_errors_of_the_file_system_are_raised(artefact, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(locks.fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"):
        artefact.compute(fail, fail)


def wait_as_rank(rank, folder, artefact):
    """One of two processes of a distributed run; notes what it finds behind the lock."""
    place = f"file://{folder / 'group'}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    note = (folder / f"waits-{rank}").write_text
    with locked(artefact.folder, "rate", note, rank == 0, Processes(1).agree_to_wait):
        (folder / f"found-{rank}").write_text(str(artefact.finished))
    dist.destroy_process_group()


def test_all_processes_of_a_run_wait_for_another_run(artefact, tmp_path, processes):
    _, go = holder(processes, artefact)
    ranks = [processes(wait_as_rank, rank, tmp_path, artefact) for rank in (0, 1)]
    until(lambda: (tmp_path / "waits-0").is_file())
    assert not list(tmp_path.glob("found-*"))
    go.set()
    for one in ranks:
        one.join(60)
    assert [(tmp_path / f"found-{rank}").read_text() for rank in (0, 1)] == ["True", "True"]
    assert not (tmp_path / "waits-1").is_file()


LAUNCHED = {"TORCHELASTIC_RUN_ID": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
LAUNCHED |= {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}


@pytest.mark.parametrize("launcher", ["torchrun", "Lightning's own", "one process"])
def test_processes_that_cannot_agree_do_not_wait(artefact, tmp_path, processes, monkeypatch, launcher):
    _, go = holder(processes, artefact)
    when_waiting(monkeypatch, go.set)
    two = () if launcher == "one process" else ("trainer.devices=2", "trainer.strategy=ddp")
    cfg = settings("rib_folder", tmp_path, "data.root=nowhere", *two)
    group = Session(cfg, tmp_path / "out", KINDS).group
    wait = partial(locked, artefact.folder, "rate", print, group.first, group.agree_to_wait)
    if launcher == "torchrun":
        for name, value in LAUNCHED.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RibsegError, match="another run computes"), wait():
            fail()
    else:
        with wait():
            assert artefact.finished


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


@pytest.mark.nightly
def test_two_commands_at_once_train_one_classifier(tmp_path):
    tree = make_learnable_tree(tmp_path / "tree")
    logs = [tmp_path / f"{name}.txt" for name in "ab"]
    # So many epochs that it is not over before the test has seen who trains.
    jobs = [start_train(tmp_path, tree, log, *RUN, "classifier.epochs=20") for log in logs]
    try:
        (holder,) = until(lambda: holders(tmp_path, jobs))
        holder.send_signal(signal.SIGSTOP)  # until the other waits, however fast they are
        until(lambda: any("waiting for classifier" in log.read_text() for log in logs))
        holder.send_signal(signal.SIGCONT)
        assert [job.wait(300) for job in jobs] == [0, 0]
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    text = "".join(log.read_text() for log in logs)
    assert f"waiting for classifier, which process {holder.pid} on " in text
    assert text.count("classifier: in the store") == 1
    first, second = (json.loads((log.with_suffix("") / "results.json").read_text()) for log in logs)
    assert first["localization"] == second["localization"]
    assert first["store"] == second["store"]
    assert not list((tmp_path / "store").glob("*.lock"))


def holders(folder, jobs):
    """The job, in a list, that has written its name into the classifier's lock; empty before."""
    text = "".join(path.read_text() for path in (folder / "store").glob("classifier-*.lock"))
    return [job for job in jobs if f"process {job.pid} " in text]


def start_train(folder, tree, log, *overrides):
    """Starts `train.py`; it prints into a file, and its results go into a folder of that name."""
    words = arguments(folder, tree, *overrides, f"hydra.run.dir={log.with_suffix('')}")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        return subprocess.Popen([sys.executable, *words], stdout=out, stderr=out, env=environment)
