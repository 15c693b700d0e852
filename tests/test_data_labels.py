"""Image-level labels from XML, CSV and masks."""

import numpy as np
import pytest
from make_trees import CLASSES, PRESENT, image_ids

from ribseg.data.io.labels import labels_from_csv, labels_from_masks, labels_from_xml
from ribseg.data.io.masks import write_mask
from ribseg.errors import DataError, DatasetNotFoundError

IDS = image_ids()
EXPECTED = np.array([[index in here for index in range(len(CLASSES))] for here in PRESENT])


def test_xml_takes_difficult_objects_but_no_parts(voc_tree):
    labels = labels_from_xml(voc_tree / "Annotations", IDS, CLASSES)
    expected = EXPECTED.copy()
    expected[0, 1] = True  # the difficult dog that the mask lacks
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == bool


def test_order_is_that_of_the_ids(voc_tree):
    labels = labels_from_csv(voc_tree / "tables/image_labels.csv", IDS[::-1], CLASSES)
    np.testing.assert_array_equal(labels, EXPECTED[::-1])


def test_csv_and_masks_agree(voc_tree):
    np.testing.assert_array_equal(
        labels_from_csv(voc_tree / "tables/image_labels.csv", IDS, CLASSES), EXPECTED
    )
    big = [
        index for index, image_id in enumerate(IDS) if index not in (5,)
    ]  # one pixel high: no room for 255
    masks = labels_from_masks(voc_tree / "SegmentationClass", [IDS[i] for i in big], len(CLASSES))
    np.testing.assert_array_equal(masks, EXPECTED[big])


def test_ignore_is_no_class(tmp_path):
    write_mask(tmp_path / "a.png", np.full((3, 3), 255))
    assert not labels_from_masks(tmp_path, ["a"], 254).any()


def test_one_error_lists_all_xml_problems(voc_tree):
    folder = voc_tree / "Annotations"
    (folder / f"{IDS[0]}.xml").unlink()
    (folder / f"{IDS[1]}.xml").write_text("<annotation><object>")
    (folder / f"{IDS[2]}.xml").write_text("")
    (folder / f"{IDS[3]}.xml").write_text(
        "<annotation><object><name>unicorn</name></object><object/></annotation>"
    )
    with pytest.raises(DataError) as caught:
        labels_from_xml(folder, IDS, CLASSES)
    message = str(caught.value)
    assert "without an XML file: 1" in message
    assert "malformed XML files: 2" in message
    assert "'unicorn' of image 2007_000003" in message
    assert "'' of image 2007_000003" in message
    assert "Known classes: cat, dog, aero_plane" in message


def test_entity_bomb_ends(voc_tree):
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "ha" * 10}">' for i in range(12))
    bomb = f"<!DOCTYPE x [{entities}]><annotation><object><name>&a11;</name></object></annotation>"
    (voc_tree / "Annotations" / f"{IDS[0]}.xml").write_text(bomb)
    with pytest.raises(DataError, match="malformed XML files: 1"):
        labels_from_xml(voc_tree / "Annotations", IDS, CLASSES)


@pytest.mark.parametrize(
    "text", ["\ufeffimage,classes\r\na,cat dog\r\nb,\r\n", 'classes , image\n"cat  dog", a\n ,b\n']
)
def test_csv_dialects(tmp_path, text):
    (tmp_path / "l.csv").write_bytes(text.encode())
    assert labels_from_csv(tmp_path / "l.csv", ["a", "b"], CLASSES).tolist() == [[1, 1, 0], [0, 0, 0]]


def test_one_error_lists_all_csv_problems(tmp_path):
    (tmp_path / "l.csv").write_text(
        "image,classes\na,cat\na,dog\nb,unicorn\nc\nd,cat,dog\n,cat\nother,griffin\n"
    )
    with pytest.raises(DataError) as caught:
        labels_from_csv(tmp_path / "l.csv", ["a", "b", "missing"], CLASSES)
    message = str(caught.value)
    assert "malformed rows: 3" in message
    assert "line 5" in message
    assert (
        "images with two rows (expected one an image, with all its classes separated by spaces): 1" in message
    )
    assert "images without a row: 1" in message
    assert "'unicorn' of image b" in message
    assert "griffin" not in message


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"image;classes\na;cat\n", "expected a first line `image,classes`, found `image;classes`"),
        (b"", "expected a first line"),
        (b"image,classes\na,caf\xe9\n", "UTF-8"),
        ("image,classes\na,cat\n".encode("utf-16"), "UTF-8"),
        (b'image,classes\na,"cat\n', "cannot be used|malformed|unknown"),
    ],
)
def test_broken_csv(tmp_path, data, match):
    (tmp_path / "l.csv").write_bytes(data)
    with pytest.raises(DataError, match=match):
        labels_from_csv(tmp_path / "l.csv", ["a", "b"], CLASSES)


def test_csv_cannot_tell_names_with_spaces(tmp_path):
    with pytest.raises(DataError, match="traffic light"):
        labels_from_csv(tmp_path / "l.csv", ["a"], ["traffic light"])


def test_absent_sources(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="Annotations"):
        labels_from_xml(tmp_path / "Annotations", ["a"], CLASSES)
    with pytest.raises(DatasetNotFoundError, match=r"l\.csv is absent"):
        labels_from_csv(tmp_path / "l.csv", ["a"], CLASSES)
    with pytest.raises(DatasetNotFoundError, match="masks"):
        labels_from_masks(tmp_path / "masks", ["a"], 3)


def test_unusable_masks_are_listed(voc_tree):
    (voc_tree / "SegmentationClass" / f"{IDS[0]}.png").unlink()
    with pytest.raises(DataError) as caught:
        labels_from_masks(voc_tree / "SegmentationClass", IDS, 2)
    assert f"{IDS[0]}.png is absent" in str(caught.value)
    assert "class ids [3]; expected 0..2" in str(caught.value)
