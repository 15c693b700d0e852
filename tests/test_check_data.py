"""`run=[check_data]` and the survey behind it."""

import json
import shutil

import numpy as np
import pytest
from make_trees import image_ids
from PIL import Image
from quick_run import folder_run

from ribseg.data.check.survey import duplicates, survey
from ribseg.data.io.masks import write_mask
from ribseg.data.voc import VOCFolder
from ribseg.errors import DataError

IDS = image_ids()


def test_survey_of_good_data(voc_tree):
    found = survey(VOCFolder(voc_tree, "train", labels="mask"), masks=True)
    assert (found.images, found.masks, found.unlabelled, found.problems) == (8, 8, 0, {})
    assert found.class_images == {"cat": 4, "dog": 4, "aero_plane": 3}
    assert found.sizes["smallest"] == (1, 3)
    assert found.kinds == {"JPEG RGB": 8}
    # The XML of image 0 names a dog that its mask lacks.
    assert [f"{IDS[0]}: -dog"] in found.oddities.values()
    assert any(kind.startswith("shorter side below 64") for kind in found.oddities)
    assert duplicates([found]) == {}


def test_survey_of_damaged_data(voc_tree):
    images, masks = voc_tree / "JPEGImages", voc_tree / "SegmentationClass"
    (images / f"{IDS[0]}.jpg").write_text("no image")
    (images / f"{IDS[1]}.jpg").unlink()
    write_mask(masks / f"{IDS[2]}.png", np.full((48, 48), 9))
    shutil.copy(images / f"{IDS[3]}.jpg", images / f"{IDS[8]}.jpg")
    shutil.copy(images / f"{IDS[4]}.jpg", images / f"{IDS[5]}.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 3)).save(images / f"{IDS[6]}.jpg", exif=exif)
    folders = [VOCFolder(voc_tree, split, labels="tables/image_labels.csv") for split in ("train", "val")]
    train, val = (survey(folder, masks=True) for folder in folders)
    assert {kind: len(items) for kind, items in train.problems.items()} == {
        "unreadable images": 1,
        "absent images": 1,
        "unusable masks": 1,
        "masks of another size than their image": 1,
    }
    assert list(val.problems) == ["masks of another size than their image"]
    assert train.kinds["JPEG L rotated"] == 1
    same = duplicates([train, val])
    assert same["the same image in train and val"] == [f"{IDS[3]} = {IDS[8]}"]
    assert same["the same image in train twice"] == [f"{IDS[4]} = {IDS[5]}"]


def test_command(tmp_path, tree, capsys):
    assert folder_run(tmp_path, tree, "run=[check_data]") == {}
    printed = capsys.readouterr().out
    assert "no errors" in printed
    assert "rare classes" in printed
    written = json.loads((tmp_path / "out" / "check_data.json").read_text())
    assert written["errors"] == 0
    assert [split["images"] for split in written["splits"]] == [6, 4]
    assert not list((tmp_path / "store").glob("classifier-*"))


def test_command_with_errors(tmp_path, tree):
    shutil.copy(tree / "JPEGImages" / "im_00.jpg", tree / "JPEGImages" / "im_08.jpg")
    (tree / "JPEGImages" / "im_02.jpg").unlink()
    with pytest.raises(
        DataError, match=r"3 errors[\s\S]*absent images: 1[\s\S]*im_02[\s\S]*train and val: 1"
    ):
        folder_run(tmp_path, tree, "run=[check_data]")
    assert json.loads((tmp_path / "out" / "check_data.json").read_text())["errors"] == 3


def damage(tree):
    (tree / "JPEGImages" / "im_02.jpg").unlink()
    (tree / "JPEGImages" / "im_03.jpg").write_bytes(b"\xff\xd8 broken")
    write_mask(tree / "SegmentationClass" / "im_08.png", np.full((4, 4), 1))


@pytest.mark.usefixtures("undrawn")
def test_broken_images_are_skipped_and_said(tmp_path, tree, capsys):
    damage(tree)
    with pytest.raises(DataError, match=r"data\.on_error=skip"):
        folder_run(tmp_path, tree, "run=[classifier,cam,evaluate]")
    whole = ("run=[classifier,cam,rib,evaluate,report]", "data.on_error=skip")
    results = folder_run(tmp_path, tree, *whole)
    assert {split: sorted(broken) for split, broken in results["skipped"].items()} == {
        "train": ["im_02", "im_03"],
        "val": ["im_08"],
    }
    assert "absent images" in results["skipped"]["train"]["im_02"]
    assert results["localization"]["cam"]["split"]["val"]["images"] == 3
    assert results["adaptation"]["images"] == 7
    assert "2 of train, 1 of val" in capsys.readouterr().out
    assert "2 of train, 1 of val" in (tmp_path / "out" / "report.html").read_text()
    again = folder_run(tmp_path, tree, *whole)
    assert again["store"] == results["store"]
    for path in (tree / "JPEGImages").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="unreadable images"):
        folder_run(tmp_path, tree, "data.on_error=skip")


def test_lists_that_overlap(tmp_path, tree):
    lists = tree / "ImageSets" / "Segmentation"
    train, val = (lists / f"{split}.txt" for split in ("train", "val"))
    before = val.read_text()
    leaked = train.read_text().split()[:2]
    val.write_text(before + "\n" + "\n".join(leaked) + "\n")
    with pytest.raises(DataError, match=r"the same image in train and val"):
        folder_run(tmp_path, tree, "run=[check_data]")
    written = json.loads((tmp_path / "out" / "check_data.json").read_text())
    assert written["duplicates"]["the same image in train and val"] == sorted(leaked)
    assert written["within"] == []
    val.write_text("\n".join(leaked))
    folder_run(tmp_path, tree, "run=[check_data]")
    written = json.loads((tmp_path / "out" / "check_data.json").read_text())
    assert written["within"] == ["all 2 images of val are in train"]
