"""Digests of file contents: what changed is read again, and nothing else."""

import os
from pathlib import Path

import pytest
from PIL import Image
from quick_run import folder_run

from ribseg.data.voc import VOCFolder
from ribseg.errors import DatasetNotFoundError
from ribseg.store import contents
from ribseg.store.contents import Contents


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read."""
    names, digest = [], contents._digest
    monkeypatch.setattr(contents, "_digest", lambda path: names.append(Path(path).name) or digest(path))
    return names


def test_unchanged_files_are_read_once(tmp_path, read, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED", 0)
    files = [tmp_path / "in" / name for name in ("a", "b", "c")]
    (tmp_path / "in").mkdir()
    for number, path in enumerate(files):
        path.write_bytes(bytes([number]) * 5)
    first = Contents(tmp_path / "memory").digests(tmp_path / "in", ["a", "b", "c", "d"])
    assert first[3] == "absent"
    assert len(set(first)) == 4
    assert read == ["a", "b", "c"]
    again = Contents(tmp_path / "memory")
    assert again.digests(tmp_path / "in", ["c", "b"]) == first[2:0:-1]
    assert read == ["a", "b", "c"]
    monkeypatch.setattr(contents, "SETTLED", 10**12)
    time = files[0].stat().st_mtime_ns
    files[0].write_bytes(b"other")  # of the same size
    os.utime(files[0], ns=(time, time))  # and the same time
    assert again.digests(tmp_path / "in", ["a", "b"]) != first[:2]
    assert read == ["a", "b", "c", "a"]
    again.digests(tmp_path / "in", ["a"])
    assert read[4:] == ["a"]  # changed a moment ago: may change again within the clock of the file system


def test_two_files_exchanged_by_renaming(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"11"), two.write_bytes(b"22")
    os.utime(one, (1e9, 1e9)), os.utime(two, (1e9, 1e9))
    monkeypatch.setattr(contents, "SETTLED", 0)
    memory = Contents(tmp_path / "memory")
    before = memory.digests(tmp_path, ["one", "two"])
    one.rename(tmp_path / "x"), two.rename(one), (tmp_path / "x").rename(two)
    assert memory.digests(tmp_path, ["one", "two"]) == before[::-1]


def test_folders_by_names_and_contents(tmp_path):
    for name in ("a/x", "b/x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "f").write_text("same")
    digest = Contents().of_folder
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    (tmp_path / "b" / "x" / "f").write_text("else")
    assert digest(tmp_path / "a") != digest(tmp_path / "b")
    with pytest.raises(DatasetNotFoundError, match="no files in"):
        digest(tmp_path / "none")


@pytest.mark.parametrize("kind", ["JPEGImages", "SegmentationClass"])
def test_a_change_that_keeps_the_size_is_a_change(tree, kind):
    def fingerprint():
        return VOCFolder(tree, "train").fingerprint(masks=True)

    one, two = sorted((tree / kind).iterdir())[:2]
    before = fingerprint()
    other = bytes(two.read_bytes())
    two.write_bytes(one.read_bytes()), one.write_bytes(other)
    assert fingerprint() != before


def test_a_turned_photograph_is_noticed_by_the_next_run(tmp_path, tree):
    image = tree / "JPEGImages" / "im_00.jpg"
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.new("RGB", (30, 20), "red").save(image, exif=exif)
    (tree / "SegmentationClass" / "im_00.png").unlink()
    run = ("run=[classifier,cam]", "data.eval_splits=[]")
    first, size = folder_run(tmp_path, tree, *run)["store"], image.stat().st_size
    assert folder_run(tmp_path, tree, *run)["store"] == first
    data = image.read_bytes()
    place = data.index(b"\x12\x01\x03\x00" if b"II*" in data else b"\x01\x12\x00\x03")
    place += 8 if b"II*" in data else 9
    image.write_bytes(data[:place] + bytes([6 if data[place] == 1 else 1]) + data[place + 1 :])
    assert image.stat().st_size == size
    assert VOCFolder(tree, "train").size("im_00") == (30, 20)
    assert folder_run(tmp_path, tree, *run)["store"]["cam"] != first["cam"]
