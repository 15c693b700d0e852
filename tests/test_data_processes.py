"""The data module in two processes: each image once, and what one process would see."""

import pytest
import two_processes
from make_trees import make_voc_tree
from started import start_command, wait_for


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """The folder of notes of two processes, and of one."""
    folder = tmp_path_factory.mktemp("noted")
    tree = make_voc_tree(folder / "tree")
    process = start_command([two_processes.__file__, tree, folder], folder, folder / "said")
    assert wait_for([process]) == [0], (folder / "said").read_text()[-3000:]
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
