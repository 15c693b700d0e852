"""What a run says that it will write, against what it writes, and a disk that is too small."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from quick_run import folder_run, settings

from ribseg.data import base
from ribseg.data.io.maps import save_maps
from ribseg.data.io.masks import write_mask
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError, DiskSpaceError, RibsegError
from ribseg.pipeline.engine import disk
from ribseg.pipeline.engine.context import Context
from ribseg.pipeline.engine.disk import BLOCK, ImageSizes, occupied, predicted, weights_of
from ribseg.pipeline.engine.plan import STAGES, chosen_stages
from ribseg.pipeline.engine.preflight import preflight
from ribseg.types import LocalizationMaps

ALL = "run=[classifier,cam,rib,refine,segmenter,evaluate]"
ON_DATA = [stage for stage in STAGES if stage.reads_data]


def checked(tmp_path, tree, *overrides):
    """A run that is about to start."""
    cfg = settings("rib_folder", tmp_path, f"data.root={tree}", "refine.variants=[none,crf]", *overrides)
    cfg.run = chosen_stages(cfg.run, cfg.segmenter.sources, cfg.refine.maps)
    context = Context(cfg, tmp_path / "out")
    preflight(context)
    return context


def test_a_run_writes_what_was_predicted(tmp_path, tree, monkeypatch, capsys):
    expected = predicted(checked(tmp_path, tree, ALL), ON_DATA)
    line = capsys.readouterr().out.split("disk: ")[1]
    assert " to be written (affinity " in line
    assert "others" in line
    assert str(tmp_path) in line.replace("\n", "")
    results = folder_run(tmp_path, tree, "refine.variants=[none,crf]", ALL)
    written = {name: occupied(folder) for name, folder in results["store"].items() if name != "evaluate"}
    assert set(expected) == set(written)
    for name, size in written.items():
        assert 0.5 < expected[name] / size < 2, name

    # Nothing is opened or asked for what is ready.
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(base, "read_header", None)
        patch.setattr(shutil, "disk_usage", None)
        assert predicted(checked(tmp_path, tree, ALL), ON_DATA) == {}
    assert "disk" not in capsys.readouterr().out

    # Of a stage that is half done, the other half.
    for path in sorted(Path(results["store"]["rib"], "maps").iterdir())[::2]:
        path.unlink()
    left = predicted(checked(tmp_path, tree, ALL), ON_DATA)
    assert list(left) == ["rib"]
    assert left["rib"] < 0.7 * expected["rib"]


def photographs(root, number=60):
    """A folder of images of many sizes with none to four of four classes."""
    generator = np.random.default_rng(0)
    rows = ["image,classes"]
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("a\nb\nc\nd")
    for place in range(number):
        size = tuple(int(side) for side in generator.integers(40, 300, 2))
        Image.new("RGB", size).save(root / "JPEGImages" / f"i{place}.jpg")
        rows.append(f"i{place}," + " ".join(name for name in "abcd" if generator.random() < 0.4))
    (root / "image_labels.csv").write_text("\n".join(rows))
    for split, step in (("train", 1), ("val", 3)):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(
            "\n".join(f"i{place}" for place in range(0, number, step))
        )
    return root


def smooth(number, size, detail):
    """Maps (number, H, W) in [0, 1] with details of so many pixels."""
    coarse = torch.rand(1, max(number, 1), *(-(-side // detail) + 1 for side in size))
    return F.interpolate(coarse, size, mode="bilinear")[0, :number]


@pytest.mark.parametrize("full", [True, False])
def test_map_files(tmp_path, monkeypatch, full):
    root = photographs(tmp_path / "data")
    train, val = VOCFolder(root, "train"), VOCFolder(root, "val")
    folders = dict.fromkeys(train.ids, train) | {i: val for i in val.ids if i not in train.ids}
    read = []
    header = base.read_header
    monkeypatch.setattr(disk, "SAMPLE", 25)
    monkeypatch.setattr(base, "read_header", lambda path: read.append(path) or header(path))
    sizes = ImageSizes(folders)
    assert read == []
    guess = sizes.map_files(full)
    assert len(set(read)) == 25
    for image_id, folder in folders.items():
        height, width = header(folder.image_path(image_id)).size
        classes = torch.from_numpy(folder.labels[folder.index(image_id)].nonzero()[0])
        # The locations of a network's last layer are 16 pixels apart.
        strided = smooth(len(classes), (-(-height // 4), -(-width // 4)), 4)
        whole = smooth(len(classes), (height, width), 16) if full else None
        maps = LocalizationMaps(classes, strided, whole, (height, width))
        save_maps(tmp_path / "maps" / f"{image_id}.npz", maps)
    assert 0.8 < guess / occupied(tmp_path / "maps") < 1.25
    sizes.mask_files(3)
    assert len(read) == 25  # once for all stages


def test_mask_files(tmp_path):
    """Smooth regions of several classes, as maps give them."""
    data = VOCFolder(photographs(tmp_path / "data"), "train")
    sizes = ImageSizes(dict.fromkeys(data.ids, data))
    for place, (image_id, folder) in enumerate(sizes.images.items()):
        width, height = Image.open(folder.image_path(image_id)).size
        y, x = np.mgrid[:height, :width]
        blobs = [np.hypot(y - 20 * k, x - 30 * k) + 5 * np.sin(y / 7 + place) < 40 for k in range(1, 5)]
        write_mask(tmp_path / "masks" / f"{image_id}.png", np.einsum("khw->hw", blobs).astype(np.uint8))
    assert 0.5 < sizes.mask_files(60) / occupied(tmp_path / "masks") < 2


def test_weights_are_counted(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 5), torch.nn.BatchNorm2d(64), torch.nn.Linear(64, 9))
    network[0].requires_grad_(False)
    learning = 4 * (64 + 64 + 64 * 9 + 9)
    everything = learning + 4 * (64 * 75 + 64 + 64 + 64) + 8  # statistics, and how many batches they saw
    assert weights_of(network) == (everything, learning)
    assert weights_of(network).checkpoint == everything + learning


def test_room_is_counted_in_blocks(tmp_path):
    assert occupied(tmp_path / "absent") == 0
    (tmp_path / "below").mkdir()
    for place, size in enumerate((0, 1, BLOCK, BLOCK + 1)):
        (tmp_path / "below" / str(place)).write_bytes(b"x" * size)
    assert occupied(tmp_path) == 4 * BLOCK


def test_a_disk_that_is_too_small_stops_the_run_before_it_starts(tmp_path, tree, monkeypatch, capsys):
    free = SimpleNamespace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    short = "run=[classifier,cam]"
    with pytest.raises(DiskSpaceError, match="the run would fill the disk") as caught:
        folder_run(tmp_path, tree, short)
    assert isinstance(caught.value, RibsegError)
    for part in ("classifier ", "found 50 kB", "store.root=DIR", "maps.full=false", "store.margin=null"):
        assert part in str(caught.value)
    assert [path.name.split("-")[0] for path in (tmp_path / "store").iterdir()] == ["data"]
    with pytest.raises(DiskSpaceError) as caught:
        checked(tmp_path, tree, short, "maps.full=false")
    assert "maps.full" not in str(caught.value)

    # What is predicted must be there, and the margin on top of it.
    context = checked(tmp_path, tree, short, "store.margin=null")
    free.free = int(1.2 * sum(predicted(context, ON_DATA).values()))
    checked(tmp_path, tree, short, "store.margin=0.1")
    with pytest.raises(DiskSpaceError, match=r"store\.margin=0\.3"):
        checked(tmp_path, tree, short, "store.margin=0.3")
    with pytest.raises(ConfigError, match=r"store\.margin: expected a number >= 0, or null"):
        checked(tmp_path, tree, short, "store.margin=-1")
