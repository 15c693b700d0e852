"""The data module in two processes: each image once, and what one process would see."""

import subprocess
import sys

import pytest
import two_processes
from make_trees import make_voc_tree


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """The folder of notes of two processes, and of one."""
    folder = tmp_path_factory.mktemp("noted")
    tree = make_voc_tree(folder / "tree")
    command = [sys.executable, two_processes.__file__, tree, folder]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    two_processes.train(tree, folder, workers=0, devices=1)
    return folder


@pytest.mark.slow
def test_two_processes_see_what_one_sees(noted):
    one, first, second = ((noted / f"fit-{name}").read_text().splitlines() for name in ("1-0", "2-0", "2-1"))
    assert sorted(first + second) == sorted(one)
    assert len(one) == 2 * 8 + 2 * 4
    assert len(first) == len(second)


@pytest.mark.slow
def test_two_processes_predict_each_image_once(noted):
    done = [path.read_text() for path in sorted(noted.glob("predicted-*"))]
    assert done[:5] == ["0", "1", "0", "1", "0"]
    assert sorted(done[5]) == ["0", "1"]  # a single image goes to both: no process may be without any
