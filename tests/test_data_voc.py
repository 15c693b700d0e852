"""The data set class for anything in VOC layout."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from make_trees import CLASSES, SIZES, image_ids
from PIL import Image

from ribseg.data.voc import VOC_CLASSES, VOCFolder
from ribseg.errors import ConfigError, DataError, DatasetNotFoundError

IDS = image_ids()


def write_list(tree, data, name="train"):
    (tree / "ImageSets/Segmentation" / f"{name}.txt").write_bytes(
        data if isinstance(data, bytes) else data.encode()
    )


def test_items(voc_tree):
    data = VOCFolder(voc_tree, "train")
    assert (len(data), data.num_classes, data.classes) == (8, 3, CLASSES)
    assert data.ids == IDS[:8]
    assert data.splits == ("train", "val")
    for item, size in zip((data[i] for i in range(8)), SIZES, strict=False):
        assert item.image.shape == (*size, 3)
        assert item.labels.dtype == torch.float32
    assert data[4].labels.tolist() == [0, 1, 1]
    assert data.index(IDS[4]) == 4
    assert data.mask(IDS[2]).shape == SIZES[2]
    assert set(np.unique(data.mask(IDS[2]))) == {3, 255}
    assert data.palette.shape == (256, 3)


def test_png_images_and_upper_case(voc_tree):
    (voc_tree / "JPEGImages" / f"{IDS[8]}.jpg").rename(voc_tree / "JPEGImages" / f"{IDS[8]}.JPG")
    data = VOCFolder(voc_tree, "val")
    assert data.image_path(IDS[8]).suffix == ".JPG"
    assert data.image_path(IDS[9]).suffix == ".png"
    assert data[1].image.shape == (*SIZES[9], 3)


def test_transform(voc_tree):
    data = VOCFolder(voc_tree, "train", transform=lambda image: {"image": image.shape})
    assert data[0].image == (*SIZES[0], 3)
    assert data.with_transform(None)[0].image.dtype == np.uint8
    assert data[0].image == (*SIZES[0], 3)


def test_nested_roots(voc_tree, tmp_path):
    (tmp_path / "a" / "VOCdevkit").mkdir(parents=True)
    voc_tree.rename(tmp_path / "a" / "VOCdevkit" / "VOC2012")
    for root in (tmp_path / "a", tmp_path / "a" / "VOCdevkit", str(tmp_path / "a" / "VOCdevkit" / "VOC2012")):
        assert len(VOCFolder(root, "val")) == 4


@pytest.mark.parametrize(
    "data",
    [
        "\ufeff2007_000001\r\n2007_000000\r\n",
        "  2007_000001  \n\n2007_000000 \n\n",
        "2007_000001\t\r2007_000000",
    ],
)
def test_list_dialects(voc_tree, data):
    write_list(voc_tree, data)
    assert VOCFolder(voc_tree, "train").ids == ["2007_000001", "2007_000000"]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("", "split 'train' is empty"),
        (" \n\r\n\ufeff".encode(), "split 'train' is empty|no plain"),
        ("2007_000000\n2007_000001\n2007_000000\n", "named twice: 1"),
        ("../../secret\n", "no plain file name: 1"),
        (
            "/JPEGImages/2007_000000.jpg /SegmentationClass/2007_000000.png\n",
            "without ending and without folder",
        ),
        ("a\\b\n..\nc\x07\n", "no plain file name: 3"),
        (b"\xff\xfe2\x000\x00", "UTF-8"),
    ],
)
def test_bad_lists(voc_tree, data, match):
    write_list(voc_tree, data)
    with pytest.raises(DataError, match=match):
        VOCFolder(voc_tree, "train")


def test_missing_parts(voc_tree, tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"(?s)JPEGImages.*no such folder.*data\.root"):
        VOCFolder(tmp_path / "nowhere", "train")
    with pytest.raises(DatasetNotFoundError, match=r"tst\.txt\. Lists that there are: train, val"):
        VOCFolder(voc_tree, "tst")
    with pytest.raises(DatasetNotFoundError):
        VOCFolder(voc_tree, "../Segmentation/train")
    shutil.rmtree(voc_tree / "Annotations")
    with pytest.raises(DatasetNotFoundError, match="Annotations"):
        VOCFolder(voc_tree, "train", labels="xml")
    shutil.rmtree(voc_tree / "JPEGImages")
    with pytest.raises(DatasetNotFoundError, match="JPEGImages"):
        VOCFolder(voc_tree, "train")


def test_label_sources(voc_tree):
    xml, table, mask = (
        VOCFolder(voc_tree, "train", labels=x).labels for x in ("xml", "tables/image_labels.csv", "mask")
    )
    assert xml[0].tolist() == [1, 1, 0]
    assert table[0].tolist() == mask[0].tolist() == [1, 0, 0]
    np.testing.assert_array_equal(VOCFolder(voc_tree, "train").labels, xml)
    shutil.rmtree(voc_tree / "Annotations")
    np.testing.assert_array_equal(VOCFolder(voc_tree, "train").labels, mask)
    (voc_tree / "tables" / "image_labels.csv").rename(voc_tree / "labels.csv")
    np.testing.assert_array_equal(VOCFolder(voc_tree, "train").labels, table)
    np.testing.assert_array_equal(VOCFolder(voc_tree, "train", labels=voc_tree / "labels.csv").labels, table)
    with pytest.raises(ConfigError, match="'xlm'"):
        VOCFolder(voc_tree, "train", labels="xlm")


def test_classes(voc_tree):
    assert VOCFolder(voc_tree, "train", classes=[*CLASSES, "x"]).labels.shape == (8, 4)
    (voc_tree / "classes.txt").write_bytes("\ufeffcat\r\n dog \r\naero_plane\r\n\r\n".encode())
    assert VOCFolder(voc_tree, "train").classes == CLASSES
    (voc_tree / "classes.txt").unlink()
    with pytest.raises(DataError, match="'aero_plane'"):
        VOCFolder(voc_tree, "train")
    assert len(VOC_CLASSES) == 20
    for bad, match in (
        (["background", "cat"], "Leave it out"),
        (["a", "a"], "named twice"),
        ([], "1 to 254"),
    ):
        with pytest.raises(DataError, match=match):
            VOCFolder(voc_tree, "train", classes=bad)


def test_absent_files_are_named_when_asked_for(voc_tree):
    (voc_tree / "JPEGImages" / f"{IDS[0]}.jpg").unlink()
    shutil.rmtree(voc_tree / "SegmentationClass")
    data = VOCFolder(voc_tree, "train")
    assert not data.has_mask(IDS[0])
    assert not data.has_image(IDS[0])
    for call in (data.image, data.mask, data.image_path, data.mask_path):
        with pytest.raises(DataError, match=f"{IDS[0]} is absent"):
            call(IDS[0])
    with pytest.raises(DataError, match="not in the split"):
        data.index("other")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_no_image(voc_tree):
    (voc_tree / "JPEGImages" / f"{IDS[0]}.jpg").unlink()
    os.mkfifo(voc_tree / "JPEGImages" / f"{IDS[0]}.jpg")
    assert not VOCFolder(voc_tree, "train").has_image(IDS[0])


def test_fingerprint(voc_tree, tmp_path):
    before = VOCFolder(voc_tree, "train").fingerprint(masks=True)
    shutil.copytree(voc_tree, tmp_path / "copy")
    copied = VOCFolder(tmp_path / "copy", "train")
    assert copied.fingerprint(masks=True) == before != copied.fingerprint(masks=False)
    without = copied.fingerprint()
    Image.new("L", (3, 3)).save(copied.mask_path(IDS[0]))
    assert copied.fingerprint() == without
    assert copied.fingerprint(masks=True) != before
    Image.new("L", (3, 3)).save(copied.image_path(IDS[0]))
    assert copied.fingerprint() != without
    assert VOCFolder(voc_tree, "train", labels="mask").fingerprint(masks=True) != before


def test_plot(voc_tree):
    data = VOCFolder(voc_tree, "train")
    assert len(data.plot(data[0]).axes) == 2
    sample = data[0]._replace(image=torch.randn(3, 20, 30))
    figure = data.plot(sample)
    assert "cat" in figure.get_suptitle()
    shutil.rmtree(voc_tree / "SegmentationClass")
    bare = VOCFolder(voc_tree, "val")
    assert "no label" in bare.plot(bare[2]).get_suptitle()


def test_pickles(voc_tree):
    again = pickle.loads(pickle.dumps(VOCFolder(voc_tree, "train")))  # noqa: S301  (our own bytes, as workers do)
    assert again[0].id == IDS[0]


def test_long_lists_open_with_one_scan_per_folder(voc_tree, monkeypatch):
    ids = [f"i{number}" for number in range(12_000)]
    write_list(voc_tree, "\n".join(ids))
    rows = "\n".join(f"{image_id},cat" for image_id in ids)
    (voc_tree / "many.csv").write_text(f"image,classes\n{rows}")
    scanned = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(str(path)) or scandir(path))
    data = VOCFolder(voc_tree, "train", labels="many.csv")
    assert data.labels.sum() == 12_000
    assert not data.has_image("i77")
    assert (
        len([path for path in scanned if path.endswith(("JPEGImages", "SegmentationClass", "Segmentation"))])
        == 3
    )
