"""Files of localization maps."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ribseg.data.io.maps import LocalizationMaps, load_maps, save_maps
from ribseg.errors import ConfigError, DataError, RibsegError


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return LocalizationMaps(torch.tensor([2, 5]), torch.rand(2, 3, 4), torch.rand(2, 10, 13), (10, 13))


def test_round_trip(tmp_path, maps):
    save_maps(tmp_path / "new" / "a.npz", maps)
    read = load_maps(tmp_path / "new" / "a.npz")
    assert torch.equal(read.classes, maps.classes)
    assert read.size == (10, 13)
    for name in ("strided", "full"):
        assert getattr(read, name).dtype == torch.float32
        assert torch.equal(getattr(read, name), getattr(maps, name).half().float())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.npz"]


def test_layout_is_the_documented_one(tmp_path, maps):
    save_maps(tmp_path / "a.npz", maps)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        kinds = {name: (archive[name].dtype.name, archive[name].shape) for name in archive.files}
    assert kinds == {
        "classes": ("int64", (2,)),
        "strided": ("float16", (2, 3, 4)),
        "full": ("float16", (2, 10, 13)),
        "size": ("int64", (2,)),
    }


def test_parts_may_be_left_out(tmp_path, maps):
    save_maps(tmp_path / "a.npz", LocalizationMaps(maps.classes, maps.strided, None))
    read = load_maps(tmp_path / "a.npz")
    assert read.full is None
    assert read.size is None


def test_image_without_classes(tmp_path):
    save_maps(tmp_path / "a.npz", LocalizationMaps(torch.zeros(0).long(), torch.zeros(0, 3, 4), None))
    assert load_maps(tmp_path / "a.npz").strided.shape == (0, 3, 4)


def test_same_maps_same_bytes(tmp_path, maps, monkeypatch):
    save_maps(tmp_path / "a.npz", maps)
    monkeypatch.setattr("time.time", lambda: 2e9)
    save_maps(tmp_path / "b.npz", load_maps(tmp_path / "a.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_what_is_not_finite_is_not_written(tmp_path, maps, bad):
    maps.strided[0, 0, 0] = bad
    with pytest.raises(DataError, match="`strided` holds NaN or infinity"):
        save_maps(tmp_path / "a.npz", maps)
    assert not list(tmp_path.iterdir())


def test_shapes_must_fit(tmp_path, maps):
    with pytest.raises(DataError, match=r"expected `strided` \(1, height, width\)"):
        save_maps(tmp_path / "a.npz", LocalizationMaps(maps.classes[:1], maps.strided, None))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, maps, monkeypatch):
    save_maps(tmp_path / "a.npz", maps)
    before = (tmp_path / "a.npz").read_bytes()
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(RibsegError, match="No space left"):
        save_maps(tmp_path / "a.npz", LocalizationMaps(maps.classes, maps.strided, None))
    assert (tmp_path / "a.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_broken_files_are_named(tmp_path, maps, keep):
    path = tmp_path / "a.npz"
    save_maps(path, maps)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(DataError, match=r"a\.npz cannot be read"):
        load_maps(path)


def test_flipped_byte_is_noticed(tmp_path, maps):
    path = tmp_path / "a.npz"
    save_maps(path, maps)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz cannot be read"):
        load_maps(path)


def test_other_contents_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", cam=np.zeros(3))
    with pytest.raises(DataError, match=r"found \['cam'\]"):
        load_maps(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", classes=np.array([{}], dtype=object), strided=np.zeros((1, 2, 2)))
    with pytest.raises(DataError, match=r"b\.npz cannot be read"):
        load_maps(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"c\.npy"):
        load_maps(tmp_path / "c.npy")
    with pytest.raises(DataError, match="absent"):
        load_maps(tmp_path / "d.npz")


def test_many_threads_may_read_at_once(tmp_path, maps):
    save_maps(tmp_path / "a.npz", maps)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(load_maps, [tmp_path / "a.npz"] * 400))
    assert all(torch.equal(one.full, read[0].full) for one in read)


@pytest.mark.parametrize("refinement", ["none", "crf", "pixel_adaptive", "segments"])
def test_a_refined_mask_follows_the_edges_of_its_image(refinement):
    image = np.zeros((40, 50, 3), np.uint8)
    image[10:30, 12:36] = 200  # the object; its map is too small
    full = torch.zeros(1, 40, 50)
    full[0, 13:27, 15:33] = 1
    maps = LocalizationMaps(torch.tensor([4]), full[:, ::4, ::4], full, (40, 50))
    segments = torch.from_numpy((image[..., 0] > 0).astype(np.int64) + 1)
    found = maps.refined(image, refinement, 0.4, segments if refinement == "segments" else None)
    assert set(np.unique(found)) <= {0, 5}
    true = image[..., 0] > 0
    overlap = ((found > 0) & true).sum() / ((found > 0) | true).sum()
    assert overlap == pytest.approx(14 * 18 / (20 * 24)) if refinement == "none" else overlap > 0.85


def test_a_refined_mask_needs_its_image_and_maps():
    maps = LocalizationMaps(torch.tensor([0]), torch.rand(1, 2, 2), torch.rand(1, 8, 8), (8, 8))
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(DataError, match=r"maps of the image's size \(7, 8\), found maps of \(8, 8\)"):
        maps.refined(image[:7])
    with pytest.raises(ConfigError, match="needs the segments of the image"):
        maps.refined(image, "segments")
    with pytest.raises(ConfigError, match="refinement: expected none"):
        maps.refined(image, "crv")
    empty = LocalizationMaps(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 2), torch.zeros(0, 8, 8), (8, 8)
    )
    assert not empty.refined(image).any()
