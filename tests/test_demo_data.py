"""The built-in demo data set and the asset of its backbone."""

import hashlib
import runpy
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import ribseg
from ribseg.data.demo import images as demo
from ribseg.data.demo import world
from ribseg.data.io.masks import read_mask
from ribseg.data.voc import VOCFolder
from ribseg.errors import DataError
from ribseg.models import Backbone, load_weights

TOOL = Path(__file__).parents[1] / "tools" / "pretrain_demo_backbone.py"
ASSET = Path(ribseg.__file__).parent / "assets" / "demo_backbone.safetensors"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return demo.make_demo_dataset(tmp_path_factory.mktemp("data") / "demo", seed=3, train=40, val=10)


def digest(root: Path) -> str:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(name.encode() + (root / name).read_bytes() for name in names)).hexdigest()


def test_same_seed_same_bytes_and_other_seed_other_bytes(root, tmp_path):
    again = demo.make_demo_dataset(tmp_path / "again", seed=3, train=40, val=10)
    other = demo.make_demo_dataset(tmp_path / "other", seed=4, train=40, val=10)
    assert digest(again) == digest(root) != digest(other)


def test_an_image_does_not_depend_on_how_many_there_are(root, tmp_path):
    fewer = demo.make_demo_dataset(tmp_path / "fewer", seed=3, train=2, val=2)
    for name in ("train_00001", "val_00001"):
        file = Path("JPEGImages") / f"{name}.jpg"
        assert (fewer / file).read_bytes() == (root / file).read_bytes()


def test_opens_as_voc_folder_and_labels_agree_with_masks(root):
    folders = {split: VOCFolder(root, split) for split in ("train", "val")}
    assert [len(folder) for folder in folders.values()] == [40, 10]
    assert not set(folders["train"].ids) & set(folders["val"].ids)
    for split, folder in folders.items():
        assert folder.classes == demo.CLASSES
        assert (folder.labels == VOCFolder(root, split, labels="mask").labels).all()
        image = folder.image(folder.ids[0])
        assert image.shape == (128, 128, 3)
        assert image.dtype == np.uint8


def test_mask_is_head_and_body(root):
    folder = VOCFolder(root, "train")
    for name in folder.ids:
        parts = read_mask(root / demo.PARTS_DIR / f"{name}.png", num_classes=2)
        mask = folder.mask(name)
        assert ((parts > 0) == (mask > 0)).all()
        for label in np.unique(mask[mask > 0]):
            head = np.count_nonzero(parts[mask == label] == world.HEAD)
            body = np.count_nonzero(parts[mask == label] == world.BODY)
            assert head > 50
            assert body > head  # the larger part of an object is not discriminative


def test_shares_of_one_object_and_of_own_texture():
    pictures = [demo.demo_image(np.random.default_rng(i), size=64) for i in range(300)]
    counts = np.array([len(picture.classes) for picture in pictures])
    assert set(counts.tolist()) == {1, 2}
    assert 0.58 < (counts == 1).mean() < 0.75
    own = [
        world.TEXTURES[demo.draw_looks(0, np.random.default_rng(i)).texture] == demo.CLASS_TEXTURES[0]
        for i in range(500)
    ]
    assert 0.48 < np.mean(own) < 0.62  # half, and now and then by chance


def test_a_finished_folder_is_kept_and_a_foreign_one_refused(root, tmp_path):
    before = (root / "demo.txt").stat().st_mtime_ns
    assert demo.make_demo_dataset(root, seed=3, train=40, val=10) == root
    assert (root / "demo.txt").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="seed 3, train 40"):
        demo.make_demo_dataset(root, seed=5, train=40, val=10)
    (tmp_path / "mine.txt").write_text("do not touch")
    with pytest.raises(DataError, match="something else"):
        demo.make_demo_dataset(tmp_path)


def test_a_failure_leaves_nothing_half_made(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "write_mask", fail)
    with pytest.raises(KeyboardInterrupt):
        demo.make_demo_dataset(tmp_path / "demo", train=2, val=1)
    assert list(tmp_path.iterdir()) == []


def test_generation_takes_seconds(tmp_path):
    start = time.perf_counter()
    demo.make_demo_dataset(tmp_path / "demo", train=100, val=0)
    assert time.perf_counter() - start < 15


@pytest.mark.parametrize("texture", world.TEXTURES)
def test_textures_have_contrast(texture):
    field = world.texture_field(texture, 64, np.random.default_rng(0))
    assert field.shape == (64, 64)
    assert field.std() > 0.2
    assert 0.15 < field.mean() < 0.85


def test_pretraining_crops_say_what_they_show():
    pretraining_crop = runpy.run_path(str(TOOL))["pretraining_crop"]
    crops = [pretraining_crop(np.random.default_rng(i)) for i in range(200)]
    for name, values in (("mark", world.MARKS), ("texture", world.TEXTURES), ("shape", world.SHAPES)):
        seen = [getattr(crop, name) for crop in crops if getattr(crop, name) >= 0]
        assert 60 < len(seen) < 200
        assert set(seen) <= set(range(len(values)))
    assert all(crop.image.shape == (64, 64, 3) for crop in crops)


def test_asset_is_small_finite_and_says_how_it_was_made():
    assert ASSET.stat().st_size <= 2e6
    with safe_open(ASSET, "pt") as file:
        assert "tools/pretrain_demo_backbone.py" in file.metadata()["command"]
        for key in file.keys():  # noqa: SIM118 - not a mapping
            tensor = file.get_tensor(key)
            assert tensor.dtype == torch.float16
            assert torch.isfinite(tensor).all()


def test_asset_loads_and_tells_creatures_from_background():
    kwargs = {"channels": (32, 64, 128, 192), "stem_width": 16}
    backbone = Backbone("resnet10t", output_stride=8, kwargs=kwargs)
    load_weights(backbone, "demo")
    picture = demo.demo_image(np.random.default_rng(1))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (torch.from_numpy(picture.image) / 255 - mean) / std
    with torch.no_grad():
        features = backbone.eval()(pixels.permute(2, 0, 1)[None])
    assert features.shape == (1, 192, 16, 16)
    norm = features.norm(dim=1)[0]
    inside = torch.from_numpy(picture.mask > 0).view(16, 8, 16, 8).float().mean((1, 3)) > 0.5
    assert norm[inside].mean() > 1.5 * norm[~inside].mean()
