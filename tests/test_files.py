"""Files are complete or absent, whatever happens while they are written."""

import pytest

from ribseg.errors import RibsegError
from ribseg.files import atomic_file, atomic_write


def test_a_file_that_cannot_be_written_to_its_end_leaves_the_old_one(tmp_path):
    path = tmp_path / "new" / "a.json"
    atomic_write(path, b"old")

    def half():
        with atomic_file(path) as file:
            file.write(b"new ")
            raise OSError("the disk is full")

    with pytest.raises(RibsegError, match=r"cannot write .*a\.json: the disk is full"):
        half()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
