"""Files are complete or absent, whatever happens while they are written."""

from pathlib import Path

import pytest

from ribseg.errors import RibsegError
from ribseg.files import atomic_write


def test_a_file_that_cannot_be_written_to_its_end_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.json"
    atomic_write(path, b"old")
    whole = Path.write_bytes

    def half(self, data):
        whole(self, data[: len(data) // 2])
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(RibsegError, match=r"cannot write .*a\.json: the disk is full"):
        atomic_write(path, b"new content")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
