"""Masks for other programs; that their own readers take them is tried where these are installed."""

import json

import numpy as np
import pytest
from PIL import Image
from quick_run import folder_run

from ribseg.cli import main
from ribseg.data.io.masks import read_mask, write_class_names, write_mask
from ribseg.errors import ConfigError, DataError
from ribseg.interop.exports import FORMS, LOST, export_masks, mask_set, outline_of, parts_of, without_holes

CLASSES = ["cat", 'dog\'s, "toy"', "aero/plane"]


@pytest.fixture
def masks(tmp_path):
    """Three photographs with masks: a hole, single pixels, 255; nothing; 255 alone. One is turned by EXIF."""
    photographs, folder = tmp_path / "photographs", tmp_path / "masks"
    photographs.mkdir()
    one = np.zeros((30, 40), np.uint8)
    one[2:20, 2:20], one[8:12, 8:12], one[9, 9], one[25, 30:32], one[28, 5], one[:, 38:] = 1, 0, 2, 3, 2, 255
    for name, mask in {
        "a": one,
        "b": np.zeros((30, 40), np.uint8),
        "c": np.full((30, 40), 255, np.uint8),
    }.items():
        write_mask(folder / f"{name}.png", mask)
        Image.new("L" if name == "b" else "RGB", (40, 30), 90).save(photographs / f"{name}.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40), "red").save(photographs / "c.jpg", exif=exif)
    write_class_names(folder, CLASSES)
    return mask_set(folder, photographs)


def truth(masks):
    return {item.id: read_mask(item.mask) for item in masks.items}


def exported(form, masks, tmp_path, **given):
    """What is lost, and the folder."""
    return export_masks(form, masks, tmp_path / form, **given), tmp_path / form


def gray(path):
    image = Image.open(path)
    assert image.mode == "L"
    return np.array(image)


def test_mmsegmentation(masks, tmp_path):
    exported("mmseg", masks, tmp_path)  # one is turned, and becomes a PNG: so do all, with one ending
    names = sorted(path.name for path in (tmp_path / "mmseg" / "img_dir" / "train").iterdir())
    assert names == ["a.png", "b.png", "c.png"]
    Image.open(masks.items[0].image).save(masks.items[2].image)
    lost, out = exported("mmseg", masks, tmp_path / "again")
    assert lost == {}
    for image_id, mask in truth(masks).items():
        assert (gray(out / "ann_dir" / "train" / f"{image_id}.png") == mask).all()
    scope = {}
    exec((out / "metainfo.py").read_text(), scope)
    assert scope["metainfo"]["classes"] == ("background", *CLASSES)
    assert scope["dataset"]["img_suffix"] == ".jpg"


def test_nnunet(masks, tmp_path):
    _, out = exported("nnunet", masks, tmp_path)
    about = json.loads((out / "dataset.json").read_text())
    assert list(about["labels"].values()) == [0, 1, 2, 3, 4]
    assert about["labels"]["ignore"] == 4
    for image_id, mask in truth(masks).items():
        assert (gray(out / "labelsTr" / f"{image_id}.png") == np.where(mask == 255, 4, mask)).all()
        image = Image.open(out / "imagesTr" / f"{image_id}_0000.png")
        assert (image.mode, image.size) == ("RGB", (40, 30))
    items = [masks.items[0], masks.items[1]._replace(id="A")]
    with pytest.raises(DataError, match="differ in case alone"):
        export_masks("nnunet", type(masks)(masks.classes, items), tmp_path / "other")


def test_hugging_face(masks, tmp_path):
    _, out = exported("hf", masks, tmp_path)
    rows = [json.loads(line) for line in (out / "train" / "metadata.jsonl").read_text().splitlines()]
    assert [row["image_id"] for row in rows] == ["a", "b", "c"]
    for row in rows:
        mask = gray(out / "train" / row["mask_file_name"])
        assert (mask == truth(masks)[row["image_id"]]).all()
        assert Image.open(out / "train" / row["file_name"]).size == mask.shape[::-1]
    assert json.loads((out / "id2label.json").read_text())["3"] == "aero/plane"


@pytest.mark.parametrize("instances", [False, True])
def test_coco_by_its_own_reader(masks, tmp_path, instances):
    api = pytest.importorskip("pycocotools.coco")
    lost, out = exported("coco", masks, tmp_path, instances=instances)
    assert lost == {LOST: sum(int((mask == 255).sum()) for mask in truth(masks).values())}
    coco = api.COCO(str(out / "annotations" / "instances_train.json"))
    assert [each["name"] for each in coco.dataset["categories"]] == CLASSES
    assert len(coco.anns) == (4 if instances else 3)
    for image in coco.imgs.values():
        found = np.zeros((image["height"], image["width"]), np.uint8)
        for each in coco.loadAnns(coco.getAnnIds(image["id"])):
            assert each["iscrowd"] == 0
            found[coco.annToMask(each) > 0] = each["category_id"]
        mask = truth(masks)[image["file_name"].partition(".")[0]]
        assert (found == np.where(mask == 255, 0, mask)).all()


def drawn(shape, points):
    """A polygon as labelme draws it: filled, with its outline."""
    from PIL import ImageDraw

    image = Image.new("1", shape[::-1])
    ImageDraw.Draw(image).polygon([tuple(point) for point in points], outline=1, fill=1)
    return np.array(image)


def test_labelme(masks, tmp_path):
    lost, out = exported("labelme", masks, tmp_path)
    assert lost["parts with a hole, cut into several polygons"] == 1
    for image_id, mask in truth(masks).items():
        content = json.loads((out / f"{image_id}.json").read_text())
        assert content["imageData"] is None
        assert (out / content["imagePath"]).is_file()
        found = np.zeros_like(mask)
        for shape in content["shapes"]:
            assert len(shape["points"]) >= 3
            found[drawn(mask.shape, shape["points"])] = CLASSES.index(shape["label"]) + 1
        assert (found == np.where(mask == 255, 0, mask)).all()


def test_regions_are_cut_until_they_have_no_hole():
    rng = np.random.default_rng(0)
    for _ in range(20):
        region = rng.random((24, 31)) < 0.6
        found = np.zeros_like(region)
        for part in parts_of(region):
            for piece in without_holes(part):
                found |= drawn(region.shape, outline_of(piece))
        assert (found == region).all()


def test_voc_colours(masks, tmp_path):
    _, out = exported("voc", masks, tmp_path)
    rows = [line.split(":") for line in (out / "labelmap.txt").read_text().splitlines()[1:]]
    colours = {tuple(map(int, row[1].split(","))): row[0] for row in rows}
    assert list(colours.values()) == ["background", *CLASSES, "ignored"]
    for image_id, mask in truth(masks).items():
        pixels = np.array(Image.open(out / "SegmentationClass" / f"{image_id}.png").convert("RGB"))
        names = np.array(["background", *CLASSES, *["?"] * 251, "ignored"], object)[mask]
        assert all(
            colours[tuple(c)] == n for c, n in zip(pixels.reshape(-1, 3).tolist(), names.ravel(), strict=True)
        )
    wrong = type(masks)(("a:b",), masks.items)
    with pytest.raises(DataError, match=r"labelmap\.txt cannot hold the names \['a:b'\]"):
        export_masks("voc", wrong, tmp_path / "wrong")


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"mmseg"}))
def test_an_interrupted_export_goes_on_and_nothing_is_overwritten(form, masks, tmp_path, monkeypatch):
    whole = exported(form, masks, tmp_path / "whole")[1]
    writer, calls = FORMS[form].write, []

    def stopped(self, item, mask):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(item.id)
        return writer(self, item, mask)

    with monkeypatch.context() as patch:
        patch.setattr(FORMS[form], "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            exported(form, masks, tmp_path)
    _, out = exported(form, masks, tmp_path)
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert files == [path.relative_to(out) for path in out.rglob("*") if path.is_file()] or set(files) == {
        path.relative_to(out) for path in out.rglob("*") if path.is_file()
    }
    assert all((whole / path).read_bytes() == (out / path).read_bytes() for path in files)
    with pytest.raises(ConfigError, match="holds something else"):
        export_masks(form, type(masks)(("x", "y", "z"), masks.items), out)


def test_the_export_of_other_masks_is_not_taken_for_done(masks, tmp_path):
    for form in FORMS:
        exported(form, masks, tmp_path)
    mask = read_mask(masks.items[0].mask)
    write_mask(masks.items[0].mask, np.where(mask == 1, 2, mask))
    for form in FORMS:
        with pytest.raises(ConfigError, match="or the export of other masks"):
            exported(form, masks, tmp_path)
    (tmp_path / "hf" / ".ribseg-export.json").write_text("{")
    with pytest.raises(ConfigError, match="or the export of other masks"):
        exported("hf", masks, tmp_path)


def test_names_are_those_of_classes_alone(masks, tmp_path):
    folder, photographs = masks.items[0].mask.parent, masks.items[0].image.parent
    with pytest.raises(DataError, match=r"expected \['x'\]"):
        mask_set(folder, photographs, ["x"])
    write_class_names(folder, ["background", *CLASSES])
    with pytest.raises(DataError, match=r"names background. Leave it out"):
        mask_set(folder, photographs)


def test_what_does_not_go_together(masks, tmp_path):
    (masks.items[0].mask.parent / "d.png").write_bytes(masks.items[0].mask.read_bytes())
    with pytest.raises(DataError, match=r"lacks images[\s\S]*d"):
        mask_set(masks.items[0].mask.parent, masks.items[0].image.parent)
    Image.new("RGB", (7, 7)).save(masks.items[0].image)
    with pytest.raises(DataError, match=r"a\.png is of \(30, 40\).*\(7, 7\)"):
        exported("hf", masks, tmp_path)


@pytest.mark.usefixtures("stored")
def test_the_masks_of_a_run_by_the_command(tmp_path, tree, capsys, monkeypatch):
    results = folder_run(tmp_path, tree, "run=[classifier,cam,rib,refine]")
    words = ["export", str(tmp_path / "out"), str(tmp_path / "hf"), "--to", "hf", "--split", "val", "--quiet"]
    monkeypatch.chdir(tmp_path)
    main(words)
    assert "4 images written" in capsys.readouterr().out
    place = f"{results['store']['pseudo_masks']}/{results['pseudo_masks']['variant']}"
    assert (gray(tmp_path / "hf" / "val" / "masks" / "im_06.png") == read_mask(f"{place}/im_06.png")).all()
    with pytest.raises(SystemExit, match="no masks of segmenter_rib; there are pseudo_masks"):
        main([*words, "--of", "segmenter_rib"])
    with pytest.raises(SystemExit, match="--images FOLDER"):
        main(["export", place, str(tmp_path / "x"), "--to", "coco"])
