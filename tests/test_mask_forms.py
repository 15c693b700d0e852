"""Masks of other programs: what our exports write is read back equal, and odd files are refused."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from test_exports import masks, truth  # noqa: F401 - a fixture

from ribseg.cli import main
from ribseg.data.io.masks import read_mask
from ribseg.errors import DataError, DatasetNotFoundError
from ribseg.interop.exports import MaskSet, export_masks
from ribseg.interop.mask_forms import import_masks

BACK = {
    "nnunet": ("nnunet", ""),
    "hf": ("gray", "train/masks"),
    "coco": ("coco", "annotations/instances_train.json"),
    "labelme": ("labelme", ""),
    "voc": ("voc", ""),
}


@pytest.mark.parametrize("form", BACK)
def test_exported_masks_are_imported_equal(form, masks, tmp_path):  # noqa: F811
    if form == "coco":
        pytest.importorskip("pycocotools")
    export_masks(form, masks, tmp_path / form)
    reader, place = BACK[form]
    names = list(masks.classes) if form == "labelme" else None  # it has no order
    number, _ = import_masks(reader, tmp_path / form / place, tmp_path / "back", names)
    assert number == 3
    if form == "coco":  # spaces are not kept there
        assert (tmp_path / "back" / "classes.txt").read_text().split("\n")[0] == "cat"
    else:
        assert (tmp_path / "back" / "classes.txt").read_text().split("\n") == list(masks.classes)
    for image_id, mask in truth(masks).items():
        expected = mask if form in ("nnunet", "hf", "voc") else np.where(mask == 255, 0, mask)
        assert (read_mask(tmp_path / "back" / f"{image_id}.png") == expected).all()


def labelled(tmp_path, lines, mask, palette=None):
    (tmp_path / "in" / "SegmentationClass").mkdir(parents=True)
    (tmp_path / "in" / "labelmap.txt").write_text(lines)
    Image.fromarray(np.array(mask, np.uint8)).save(tmp_path / "in" / "SegmentationClass" / "a.png")
    said = import_masks("voc", tmp_path / "in", tmp_path / "out")[1]
    return (
        read_mask(tmp_path / "out" / "a.png").tolist(),
        (tmp_path / "out" / "classes.txt").read_text(),
        said,
    )


RED, BLUE, BLACK = [255, 0, 0], [0, 0, 255], [0, 0, 0]


def test_background_need_not_come_first(tmp_path):
    lines = (
        "# label:color_rgb:parts:actions\ncat:255,0,0::\nbackground:0,0,0::\ndog:0,0,255::\nvoid:9,9,9::\n"
    )
    found, names, said = labelled(tmp_path, lines, [[RED, BLACK], [BLUE, [9, 9, 9]]])
    assert (found, names, said) == ([[1, 0], [2, 255]], "cat\ndog", "")


def test_a_labelmap_without_colours_takes_vocs_and_says_so(tmp_path):
    lines = "background:::\ncat:::\ndog:::\n"
    found, names, said = labelled(tmp_path, lines, [[[128, 0, 0], [0, 128, 0]], [BLACK, BLACK]])
    assert (found, names) == ([[1, 2], [0, 0]], "cat\ndog")
    assert "no colours: VOC's are taken" in said


def test_a_colour_without_a_name(tmp_path):
    with pytest.raises(DataError, match=r"colours without a name: 1\s+0,0,255"):
        labelled(tmp_path, "background:0,0,0::\ncat:255,0,0::\n", [[RED, BLUE]])


def test_roboflows_masks_beside_photographs(tmp_path):
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n2, dog\n")
    Image.fromarray(np.array([[0, 2], [1, 1]], np.uint8)).save(tmp_path / "a_mask.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    assert import_masks("gray", tmp_path, tmp_path / "out", ["dog", "cat"])[0] == 1
    assert read_mask(tmp_path / "out" / "a.png").tolist() == [[0, 1], [2, 2]]
    Image.fromarray(np.array([[0, 7]], np.uint8)).save(tmp_path / "b_mask.png")
    with pytest.raises(DataError, match=r"b_mask\.png holds the numbers \[7\]"):
        import_masks("gray", tmp_path, tmp_path / "other")


def test_shapes_of_labelme(tmp_path):
    part = io.BytesIO()
    Image.fromarray(np.array([[1, 0], [1, 1]], bool)).save(part, "PNG")
    shapes = [
        {"label": "b", "shape_type": "rectangle", "points": [[0, 0], [3, 3]]},
        {
            "label": "a",
            "shape_type": "mask",
            "points": [[1, 1], [2, 2]],
            "mask": base64.b64encode(part.getvalue()).decode(),
        },
    ]
    about = {"shapes": shapes, "imagePath": "x.jpg", "imageData": None, "imageHeight": 4, "imageWidth": 5}
    (tmp_path / "x.json").write_text(json.dumps(about))
    _, said = import_masks("labelme", tmp_path, tmp_path / "out")
    assert said == "the classes are ordered by name: a, b"
    expected = [[2, 2, 2, 2, 0], [2, 1, 2, 2, 0], [2, 1, 1, 2, 0], [2, 2, 2, 2, 0]]
    assert read_mask(tmp_path / "out" / "x.png").tolist() == expected
    about["shapes"] = [{"label": "a", "shape_type": "line", "points": [[0, 0], [3, 3]]}]
    (tmp_path / "x.json").write_text(json.dumps(about))
    with pytest.raises(
        DataError, match=r"x\.json, shape 0: expected polygon \| rectangle \| mask, found line"
    ):
        import_masks("labelme", tmp_path, tmp_path / "other")


def test_a_category_background_is_no_class(tmp_path):
    pytest.importorskip("pycocotools")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}],
        "categories": [{"id": 0, "name": "background"}, {"id": 1, "name": "cat"}],
        "annotations": [
            {
                "id": n,
                "image_id": 1,
                "category_id": c,
                "segmentation": {"size": [4, 4], "counts": runs},
                "iscrowd": 0,
            }
            for n, (c, runs) in enumerate([(1, [0, 16]), (0, [8, 8])])
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    import_masks("coco", tmp_path / "a.json", tmp_path / "out")
    assert read_mask(tmp_path / "out" / "a.png").tolist() == [[1, 1, 0, 0]] * 4
    assert (tmp_path / "out" / "classes.txt").read_text() == "cat"


def test_background_and_ignored_among_labelmes_names(tmp_path):
    shapes = [
        {"label": name, "points": [[x, 0], [x, 3], [x, 1]]}
        for x, name in enumerate(("cat", "_background_", "__ignore__"))
    ]
    about = {"shapes": shapes, "imagePath": "x.jpg", "imageData": None, "imageHeight": 4, "imageWidth": 4}
    (tmp_path / "x.json").write_text(json.dumps(about))
    import_masks("labelme", tmp_path, tmp_path / "out")
    assert read_mask(tmp_path / "out" / "x.png").tolist() == [[1, 0, 255, 0]] * 4
    with pytest.raises(DataError, match=r"--names names __ignore__ and _background_. Leave it out"):
        import_masks("labelme", tmp_path, tmp_path / "y", ["__ignore__", "_background_", "cat"])
    about["shapes"][0]["label"] = "ant"
    (tmp_path / "y.json").write_text(json.dumps(about))
    with pytest.raises(
        DataError, match=r"holds masks of the classes \['cat'\], but these are \['ant', 'cat'\]"
    ):
        import_masks("labelme", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("form", "name", "text"),
    [
        ("labelme", "a.json", '{"shapes": null}'),
        ("labelme", "a.json", '{"shapes": [{"points": []}], "imageHeight": 3, "imageWidth": 3}'),
        ("voc", "labelmap.txt", "cat:255 0 0::\n"),
        ("voc", "labelmap.txt", "cat:1,2,3::\ndog:1,2,3::\n"),
        ("voc", "labelmap.txt", "cat:1,2,3::\ndog:::\n"),
        ("gray", "_classes.csv", "filename, cat\na.jpg, 1\n"),
        ("gray", "id2label.json", "[1]"),
        ("nnunet", "dataset.json", "{}"),
    ],
)
def test_odd_files_are_named(form, name, text, tmp_path):
    (tmp_path / name).write_text(text)
    for folder in ("SegmentationClass", "labelsTr"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match=str(tmp_path)):
        import_masks(form, tmp_path, tmp_path / "out")


def test_the_command_and_what_is_not_there(masks, tmp_path, capsys):  # noqa: F811
    export_masks("nnunet", masks, tmp_path / "nn")
    words = [
        "convert",
        "masks-from",
        str(tmp_path / "nn"),
        str(tmp_path / "out"),
        "--form",
        "nnunet",
        "--quiet",
    ]
    main(words)
    assert "3 masks and classes.txt written" in capsys.readouterr().out
    with pytest.raises(DatasetNotFoundError, match=r"labelmap\.txt is absent"):
        import_masks("voc", tmp_path, tmp_path / "x")
    with pytest.raises(DatasetNotFoundError, match="no masks of the form labelme"):
        import_masks("labelme", tmp_path, tmp_path / "x")
    with pytest.raises(DataError, match="no names of the numbers"):
        import_masks("gray", tmp_path / "nn" / "labelsTr", tmp_path / "x")
    with pytest.raises(DataError, match="not among the given names"):
        import_masks("nnunet", tmp_path / "nn", tmp_path / "x", ["dog"])
    assert isinstance(masks, MaskSet)
