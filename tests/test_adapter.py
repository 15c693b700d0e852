"""Other data sets, written in VOC layout."""

import numpy as np
import pytest
import torch
from PIL import Image

from ribseg.data.adapter import write_voc_tree
from ribseg.data.check.dataset import check_dataset
from ribseg.data.io.images import read_image
from ribseg.data.voc import VOCFolder
from ribseg.errors import DataError

CLASSES = ("red fox", "hen", "cow")


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)


def test_all_forms_of_labels_and_images(tmp_path):
    mask = np.zeros((20, 30), int)
    mask[:5], mask[5] = 3, 255
    samples = [
        (image(0), 1),
        (Image.fromarray(image(1)).convert("L"), "red fox"),
        (image(2), ["hen", "cow"], mask),
        (image(3), torch.tensor([0, 2])),
        (image(4), np.int64(2), Image.fromarray(mask.astype(np.uint8))),
        (image(5), []),
        (image(6), {0, 1}),
    ]
    write_voc_tree(iter(samples), tmp_path, "train", CLASSES)
    write_voc_tree(samples[:2], tmp_path, "val", CLASSES, prefix="v")
    data = VOCFolder(tmp_path, "train")
    assert data.classes == ("red_fox", "hen", "cow")
    found = [np.flatnonzero(row).tolist() for row in data.labels]
    assert found == [[1], [0], [1, 2], [0, 2], [2], [], [0, 1]]
    assert (data.image("train_000000") == image(0)).all()
    assert (data.mask("train_000004") == mask).all()
    check_dataset(data, full=True)
    assert VOCFolder(tmp_path, "val").ids == ["v_000000", "v_000001"]
    assert VOCFolder(tmp_path, "val").labels.sum() == 2


def labels_of(tmp_path, *labels, classes=CLASSES, **given):
    place = tmp_path / str(len(list(tmp_path.iterdir())))
    write_voc_tree([(image(), each) for each in labels], place, "train", classes, **given)
    return [np.flatnonzero(row).tolist() for row in VOCFolder(place, "train").labels]


def test_a_split_does_not_change_another(tmp_path):
    for number, name in enumerate(("train/0.png", "val/0.png")):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(image(number)).save(tmp_path / name)
    tree = write_voc_tree([(tmp_path / "train/0.png", 0)], tmp_path / "tree", "train", ["a", "b"])
    with pytest.raises(DataError, match=r"'0' is in the list train\.txt already; name ids="):
        write_voc_tree([(tmp_path / "val/0.png", 1)], tree, "val", ["a", "b"])
    with pytest.raises(
        DataError, match=r"classes\.txt has the names \['a', 'b'\], but these are \['b', 'a'\]"
    ):
        write_voc_tree([(tmp_path / "val/0.png", 1)], tree, "val", ["b", "a"], ids=["1"])
    write_voc_tree([(tmp_path / "val/0.png", 1)], tree, "val", ["a", "b"], ids=["1"])
    assert (VOCFolder(tree, "train").image("0") == image(0)).all()


def test_the_form_of_labels_is_one_for_all_samples(tmp_path):
    assert labels_of(tmp_path, torch.tensor([1, 0, 1]), "hen", np.zeros(3, bool)) == [[0, 2], [1], []]
    two, rows = ("hen", "cow"), ([0, 1], [1, 0])
    with pytest.raises(DataError, match=r"sample 0: \[0, 1\] can be a vector.*and indices"):
        labels_of(tmp_path, *rows, classes=two)
    assert labels_of(tmp_path, *rows, classes=two, form="vectors") == [[1], [0]]
    assert labels_of(tmp_path, *rows, classes=two, form="indices") == [[0, 1], [0, 1]]
    assert labels_of(tmp_path, [0, 0], [0, 1], classes=two) == [[], [1]]
    with pytest.raises(DataError, match="sample 1: expected vectors as labels, as of all samples"):
        labels_of(tmp_path, [0, 0, 1], 2)
    with pytest.raises(DataError, match=r"sample 0: \[0\] can be a vector"):
        labels_of(tmp_path, [0], classes=["hen"])


def test_files_keep_their_names_and_bytes(tmp_path):
    photographs = [tmp_path / "a_1.JPG", tmp_path / "b.webp"]
    for number, path in enumerate(photographs):
        Image.fromarray(image(number)).save(path)
    data_of = lambda folder, **given: VOCFolder(  # noqa: E731
        write_voc_tree([(path, 0) for path in photographs], folder, "train", ["a"], **given), "train"
    )
    data = data_of(tmp_path / "one")
    assert data.ids == ["a_1", "b"]
    assert data.image_path("a_1").read_bytes() == photographs[0].read_bytes()
    assert (data.image("b") == read_image(photographs[1])).all()
    assert data_of(tmp_path / "two", ids=["x", "y"]).ids == ["x", "y"]
    with pytest.raises(DataError, match="sample 1: expected an id of its own"):
        data_of(tmp_path / "three", ids=["x", "x"])


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ((image(), 3), r"sample 1: expected indices 0\.\.2, names, or 3 zeros and ones"),
        ((image(), "dog"), "dog"),
        ((image(), True), "True"),
        ((torch.zeros(3, 4, 4), 0), "without a transform"),
        (image(), "expected .image, labels."),
        ((image(), 0, np.full((4, 4), 9)), "expected a mask"),
    ],
)
def test_wrong_samples_are_named(tmp_path, sample, message):
    with pytest.raises(DataError, match=message):
        write_voc_tree([(image(), 0), sample], tmp_path, "train", CLASSES)


@pytest.mark.parametrize("table", [b"a,b\n1,2\n", b"image,classes\nx\n", "image,classes\n".encode("utf-16")])
def test_a_broken_table_of_an_earlier_split_is_named(tmp_path, table):
    (tmp_path / "image_labels.csv").write_bytes(table)
    with pytest.raises(DataError, match=r"image_labels\.csv"):
        write_voc_tree([(image(), 0)], tmp_path, "train", CLASSES)
    assert (tmp_path / "image_labels.csv").read_bytes() == table


def test_no_samples(tmp_path):
    with pytest.raises(DataError, match="has no sample"):
        write_voc_tree([], tmp_path, "train", CLASSES)


def test_images_are_written_as_files_of_them_are_read(tmp_path):
    deep = Image.fromarray(np.full((4, 6), 257 * 100, np.uint16))
    turned = Image.new("RGB", (6, 4))
    turned.getexif()[0x0112] = 6
    tree = write_voc_tree([(deep, 0), (turned, 0)], tmp_path, "train", ["a"])
    images = [read_image(tree / "JPEGImages" / f"train_{number:06d}.png") for number in range(2)]
    assert (images[0] == 100).all()
    assert images[1].shape == (6, 4, 3)
    with pytest.raises(DataError, match="sample 0 holds floating-point"):
        write_voc_tree([(Image.new("F", (3, 3)), 0)], tmp_path, "val", ["a"])


def test_a_second_call_leaves_no_image_with_the_labels_of_another(tmp_path):
    black, white = (np.full((4, 6, 3), value, np.uint8) for value in (0, 255))
    write_voc_tree([(black, 0), (white, 1)], tmp_path, "train", ["dark", "bright"])
    write_voc_tree([(white, 1), (black, 0)], tmp_path, "train", ["dark", "bright"])
    assert read_image(tmp_path / "JPEGImages" / "train_000000.png").min() == 255


def test_masks_have_the_size_of_their_image(tmp_path):
    with pytest.raises(DataError, match=r"sample 0: expected a mask of the image's"):
        write_voc_tree([(np.zeros((4, 6, 3), np.uint8), 0, np.zeros((6, 4), int))], tmp_path, "train", ["a"])
