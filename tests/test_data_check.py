"""The check of a whole data set lists everything at once."""

import numpy as np
import pytest
from make_trees import image_ids
from PIL import Image

from ribseg import progress
from ribseg.data.check.dataset import check_dataset
from ribseg.data.io.masks import write_mask
from ribseg.data.voc import VOCFolder
from ribseg.errors import DataError

IDS = image_ids()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("workers", [None, 1])
def test_good_data(voc_tree, full, workers, capsys):
    report = check_dataset(VOCFolder(voc_tree, "val"), masks=True, full=full, workers=workers)
    assert (report.images, report.masks, report.unlabelled) == (4, 4, (IDS[10],))
    assert check_dataset(VOCFolder(voc_tree, "val")).masks == 0
    assert capsys.readouterr().out == ""


def test_progress(voc_tree, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SHORT", 0)
    check_dataset(VOCFolder(voc_tree, "val"), progress=True)
    assert "Checking val" in capsys.readouterr().out


@pytest.fixture
def damaged(voc_tree):
    images, masks = voc_tree / "JPEGImages", voc_tree / "SegmentationClass"
    (images / f"{IDS[0]}.jpg").unlink()
    (images / f"{IDS[1]}.jpg").write_bytes((images / f"{IDS[1]}.jpg").read_bytes()[:-300])
    (images / f"{IDS[2]}.jpg").write_text("no image")
    (masks / f"{IDS[3]}.png").unlink()
    Image.new("RGB", (71, 33)).save(masks / f"{IDS[3]}.png")
    (masks / f"{IDS[4]}.png").unlink()
    write_mask(masks / f"{IDS[5]}.png", np.full((1, 40), 9))
    write_mask(masks / f"{IDS[6]}.png", np.zeros((3, 41), int))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (49, 64)).save(images / f"{IDS[7]}.jpg", exif=exif)
    return VOCFolder(voc_tree, "train")


def test_full_check_lists_everything(damaged):
    with pytest.raises(DataError) as caught:
        check_dataset(damaged, masks=True, full=True)
    message = str(caught.value)
    assert "8 problems in 8 images" in message
    assert f"absent images: 1\n    {IDS[0]}" in message
    assert "unreadable images: 2" in message
    assert f"absent masks: 1\n    {IDS[4]}" in message
    assert "unusable masks: 2" in message
    assert "mode RGB" in message
    assert "class ids [9]; expected 0..3" in message
    assert "of another size than their image: 2" in message
    assert "41 x 3 (width x height), image 3 x 40" in message
    assert "before its EXIF rotation" in message
    assert "Complete or correct the files" in message


def test_header_check_sees_what_headers_show(damaged):
    with pytest.raises(DataError) as caught:
        check_dataset(damaged, masks=True, full=False)
    assert "unreadable images: 1" in str(caught.value)
    assert "unusable masks: 1" in str(caught.value)
    with pytest.raises(DataError) as caught:
        check_dataset(damaged, masks=False, full=False)
    assert "mask" not in str(caught.value).split("Complete")[0]


def test_many_problems_are_cut_short(voc_tree):
    (voc_tree / "ImageSets/Segmentation/train.txt").write_text("\n".join(f"none{i}" for i in range(3000)))
    (voc_tree / "l.csv").write_text("image,classes\n" + "\n".join(f"none{i},cat" for i in range(3000)))
    with pytest.raises(DataError) as caught:
        check_dataset(VOCFolder(voc_tree, "train", labels="l.csv"))
    assert "absent images: 3000" in str(caught.value)
    assert "... and 2995 more" in str(caught.value)
    assert len(str(caught.value)) < 1000
