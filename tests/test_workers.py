"""Processes of pools and of jobs at the same time: their threads, and what they can start."""

import os
import pickle
import subprocess
import sys
from multiprocessing import current_process
from types import SimpleNamespace

import joblib
import pytest
import torch
from in_processes import loaded_in_a_process, threads_of_torch

from ribseg import workers
from ribseg.pipeline.run import run


def test_processes_of_a_pool_use_one_thread():
    with workers.process_pool(1, threads_of_torch) as pool:
        assert pickle.loads(pool.submit(workers.do, None).result()) == 1  # noqa: S301  (our own bytes)


def test_a_program_without_a_guard_is_told_to_have_one(tmp_path):
    """New processes import it, and with it what it calls."""
    program = tmp_path / "program.py"
    lines = ("from ribseg import workers", "workers.refuse_unguarded()", "workers.forks = lambda: False")
    program.write_text("\n".join((*lines, "print(list(workers.ordered_map(len, ['a', 'bb'], 2)))")))
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith(f"RibsegError: {workers.GUARD}")


def test_a_run_does_not_wait_for_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit):
        run({}, tmp_path)


def test_data_loaders_have_processes_in_jobs_of_joblib():
    with joblib.parallel_backend("loky"):
        found = joblib.Parallel(n_jobs=2)(joblib.delayed(loaded_in_a_process)() for _ in range(2))
    assert found == [[[0, 1], [2, 3]]] * 2


@pytest.mark.parametrize(
    ("jobs", "set_by_user", "found"),
    [(1, None, None), (2, None, "passive"), (-1, None, "passive"), (2, "active", "active")],
)
def test_threads_of_jobs_at_the_same_time_sleep_while_they_wait(monkeypatch, jobs, set_by_user, found):
    monkeypatch.setattr(workers, "_jobs", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    environment = {} if set_by_user is None else {"OMP_WAIT_POLICY": set_by_user}
    monkeypatch.setattr(os, "environ", environment)
    workers.share_cores(jobs)
    assert environment.get("OMP_WAIT_POLICY") == found


@pytest.mark.skipif(sys.platform != "linux", reason="processes are no copies here")
def test_processes_are_no_copies_where_autograd_fails_in_one():
    """After torch has started threads for autograd, a copy of the process raises in its first backward."""

    def ones(*_, **__):
        raise RuntimeError("Unable to handle autograd's threading in combination with fork")

    assert workers._copies_differentiate(torch)
    assert not workers._copies_differentiate(SimpleNamespace(ones=ones))
