"""Odd but legal data: what a run says of it before its first stage, and in its results."""

import json
import shutil
import unicodedata
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from quick_run import folder_run
from torchmetrics.functional.classification import multilabel_average_precision

from ribseg.data.check.dataset import check_dataset
from ribseg.data.check.mask_notes import mask_notes, unusable_masks
from ribseg.data.check.near_misses import near_misses
from ribseg.data.feed.sampler import ReferenceSampler
from ribseg.data.io.masks import voc_palette, write_mask
from ribseg.data.voc import VOCFolder
from ribseg.errors import DataError
from ribseg.functional.evaluation import scores
from ribseg.metrics.masks import mask_scores
from ribseg.modules.classification import MeanAveragePrecision

LISTS = "ImageSets/Segmentation"


def relabel(tree, label):
    """Writes each row of the label file anew: (image id, classes) -> a line."""
    rows = [row.split(",") for row in (tree / "image_labels.csv").read_text().split()]
    (tree / "image_labels.csv").write_text("\n".join(["image,classes", *(label(*row) for row in rows[1:])]))


def relist(tree, change):
    for split in ("train", "val"):
        path = tree / LISTS / f"{split}.txt"
        path.write_text("\n".join(map(change, path.read_text().split())))


def rename(tree, change):
    for path in [*(tree / "JPEGImages").iterdir(), *(tree / "SegmentationClass").iterdir()]:
        path.rename(path.with_name(change(path.stem) + path.suffix))


def remask(tree, change):
    """Writes each mask anew: (H, W) uint8 -> the same."""
    for path in (tree / "SegmentationClass").iterdir():
        write_mask(path, change(np.array(Image.open(path))))


def ids(**new):
    """A change of masks: names of ids, as `_0`, to their new values."""
    table = np.arange(256)
    for old, value in new.items():
        table[int(old[1:])] = value
    return lambda mask: table[mask]


def checked(tree, split="train"):
    folder = VOCFolder(tree, split, labels="image_labels.csv")
    return check_dataset(folder, masks=True, full=True).values, folder.classes


def keys(facts, classes):
    return [note.key for note in mask_notes("train", facts, classes)]


# Reference images


def test_images_without_references_are_those_with_an_empty_pool():
    generator = np.random.default_rng(0)
    for share in (0.1, 0.4, 0.7):
        train, others = (generator.random((number, 6)) < share for number in (30, 50))
        sampler = ReferenceSampler([f"t{row}" for row in range(30)], train)
        for names, labels in (([f"t{row}" for row in range(30)], train), (["x"] * 50, others)):
            expected = [
                len(sampler.candidates(name, row)) > 0
                for name, row in zip(names, labels, strict=True)
                if row.any()
            ]
            assert sampler.has_references(labels)[labels.any(1)].tolist() == expected


@pytest.mark.usefixtures("undrawn")
def test_data_of_one_class_have_no_references(tmp_path, tree, capsys):
    (tree / "classes.txt").write_text("a")
    relabel(tree, lambda image_id, _: f"{image_id},a")
    remask(tree, ids(_2=1))
    results = folder_run(tmp_path, tree, "rib.lr=auto", "run=[classifier,rib,report]")
    expected = {"images": 10, "without": 10, "splits": {"train": 6, "val": 4}, "train": 6}
    assert results["data"]["without_references"] == expected
    assert [note["key"] for note in results["data"]["notes"]] == [
        "no_reference_image",
        "class_in_every_image",
    ]
    printed = capsys.readouterr().out
    said = "10 of 10 images with a class have no reference image (train 6, val 4)"
    assert printed.index(said) < printed.index("classifier:")
    assert "6 of its 6 images have none" in printed
    assert said in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["data"] == results["data"]
    folder_run(tmp_path, tree, "rib.lr=auto", "run=[check_data]")
    lines = [line for line in printed.splitlines() if line.startswith("data: ")]
    lines.remove("data: checking all files")
    assert set(lines) <= set(capsys.readouterr().out.splitlines())


def check_data(tmp_path, tree, *overrides):
    """What a run says of the data, computed alone."""
    folder_run(tmp_path, tree, "run=[check_data]", *overrides)
    return json.loads((tmp_path / "out" / "check_data.json").read_text())["data"]


def test_nothing_is_said_of_references_that_nobody_draws(tmp_path, tree):
    relabel(tree, lambda image_id, _: f"{image_id},a b")
    assert check_data(tmp_path, tree)["without_references"]["without"] == 10
    assert "without_references" not in check_data(tmp_path, tree, "rib.references=0")
    assert "without_references" not in folder_run(tmp_path, tree, "run=[classifier]")["data"]


def test_one_image_without_a_label_is_a_reference_to_all(tmp_path, tree):
    relabel(tree, lambda image_id, _: f"{image_id},{'' if image_id == 'im_00' else 'a b'}")
    found = check_data(tmp_path, tree)["without_references"]
    assert (found["images"], found["without"]) == (9, 0)


# Files of one id


@pytest.mark.parametrize(
    ("folder", "new"), [("JPEGImages", "png"), ("JPEGImages", "JPG"), ("SegmentationClass", "PNG")]
)
def test_files_of_one_id_are_refused(tree, folder, new):
    old = "jpg" if folder == "JPEGImages" else "png"
    for image_id in ("im_00", "im_03"):
        shutil.copy(tree / folder / f"{image_id}.{old}", tree / folder / f"{image_id}.{new}")
    with pytest.raises(DataError) as caught:
        VOCFolder(tree, "train")
    for image_id in ("im_00", "im_03"):
        assert " and ".join(sorted((f"{image_id}.{old}", f"{image_id}.{new}"))) in str(caught.value)


def test_ids_in_two_folders_are_all_listed(tree):
    shutil.copytree(tree / "JPEGImages", tree / "more")
    with pytest.raises(DataError, match=r"ids in two folders: 10[\s\S]*im_00[\s\S]*im_01"):
        VOCFolder(tree, "train", images_dir=["JPEGImages", "more"])


# Classes


def test_a_class_that_only_val_has(tmp_path, tree, capsys):
    (tree / "classes.txt").write_text("a\nb\nc\nd")
    relabel(tree, lambda image_id, name: f"{image_id},{'c' if image_id == 'im_09' else name}")
    remask(tree, ids())
    write_mask(
        tree / "SegmentationClass/im_09.png",
        np.array(ids(_2=3)(Image.open(tree / "SegmentationClass/im_09.png"))),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?i).*positive samples")
        results = folder_run(tmp_path, tree, "run=[classifier,cam,evaluate]")
    printed = capsys.readouterr().out
    said = "The class 'c' has 1 image of val, but no image of train"
    assert printed.index(said) < printed.index("classifier:")
    assert [note["key"] for note in results["data"]["notes"]] == [
        "class_without_training_image",
        "class_without_image",
    ]
    assert "has 'd'" in results["data"]["notes"][1]["found"]


def test_mean_average_precision_is_over_the_classes_that_occur():
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 5), (torch.rand(40, 5) < 0.3).int()
    labels[:, 2] = 0
    metric = MeanAveragePrecision()
    for part in range(0, 40, 8):
        metric.update(logits[part : part + 8], labels[part : part + 8])
    kept = [0, 1, 3, 4]
    expected = multilabel_average_precision(logits[:, kept], labels[:, kept], 4, average="macro")
    torch.testing.assert_close(metric.compute(), expected, rtol=0, atol=0)
    metric.reset()
    metric.update(logits, labels * 0)
    assert metric.compute().isnan()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("0 background\n1 a\n2 b", "names 0 background|names background"),
        ("1: a\n2: b", "numbers in front"),
        ("0 a\n1 b", "numbers in front"),
        ("__ignore__\n_background_\na\nb", "__ignore__ and _background_"),
    ],
)
def test_files_of_class_names_with_something_else(tree, text, match):
    (tree / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=match):
        VOCFolder(tree, "train", labels="mask")


@pytest.mark.parametrize("text", ["1 cent\n2 cent", "7up\n8ball", "a\n\n\nb\n\n", "1\n2"])
def test_names_that_hold_numbers_are_names(tree, text):
    (tree / "classes.txt").write_text(text)
    assert VOCFolder(tree, "train", labels="mask").num_classes == 2


# Ids


def with_space(image_id):
    return image_id.replace("_", " ")


def test_ids_with_spaces_name_cause_and_cure(tree):
    rename(tree, with_space)
    relist(tree, with_space)
    (tree / LISTS / "train.txt").write_text("im 00\nim 01\nim 02.jpg")
    with pytest.raises(DataError, match=r"ids with spaces: 3[\s\S]*'im 00'[\s\S]*rename the files") as caught:
        VOCFolder(tree, "train")
    assert "named twice" not in str(caught.value)


def test_ids_with_spaces_of_absent_files(tree):
    (tree / LISTS / "train.txt").write_text("new 00\nnew 01")
    with pytest.raises(DataError, match=r"more than an id: 2[\s\S]*new 01[\s\S]*If file names hold spaces"):
        VOCFolder(tree, "train")


@pytest.mark.parametrize(("listed", "labelled"), [(True, False), (True, True), (False, True)])
def test_ids_with_endings_name_cause_and_cure(tree, listed, labelled):
    if listed:
        relist(tree, lambda image_id: f"{image_id}.jpg")
    if labelled:
        relabel(tree, lambda image_id, name: f"{image_id}.jpg,{name}")
    match = (
        r"ids with an ending \(write x, not x\.jpg\): 6"
        if listed
        else r"im_00 \(there as 'im_00\.jpg': file ending"
    )
    with pytest.raises(DataError, match=match):
        VOCFolder(tree, "train", labels="image_labels.csv")


def test_an_id_may_hold_a_point(tree):
    rename(tree, lambda image_id: f"{image_id}.v2")
    relist(tree, lambda image_id: f"{image_id}.v2")
    folder = VOCFolder(tree, "train", labels="mask")
    assert folder.image_path("im_00.v2").name == "im_00.v2.jpg"


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("{id},A", "'A' of image im_00 .there as 'a': upper and lower case"),
        ('{id},"a,b"', "several names; separate them by spaces"),
        ("{id},0", "'0' of image im_00 .a number; expected names"),
        ("{id},a\n{id},b", "images with two rows .expected one an image"),
        ("{ID},a", "im_00 .there as 'IM_00': upper and lower case"),
    ],
)
def test_label_files_that_nearly_fit(tree, row, match):
    relabel(tree, lambda image_id, _: row.format(id=image_id, ID=image_id.upper()))
    with pytest.raises(DataError, match=match):
        VOCFolder(tree, "train", labels="image_labels.csv")


def test_names_of_another_unicode_form_are_explained(tree):
    rename(tree, lambda image_id: unicodedata.normalize("NFD", f"é{image_id}"))
    relist(tree, lambda image_id: f"é{image_id}")
    relabel(tree, lambda image_id, name: f"é{image_id},{name}")
    with pytest.raises(DataError, match=r"absent images: 6[\s\S]*Unicode form"):
        check_dataset(VOCFolder(tree, "train", labels="image_labels.csv"))


def test_near_misses():
    known = ["000012", "b.png", "Cat", '"dog"', "img_2"]
    found = near_misses(["12", "sub/b", "cat", "dog", "IMG 2.jpg", "x", "Cat"], known)
    assert found["12"] == "there as '000012': zeros in front, which spreadsheets drop"
    assert found["sub/b"] == "there as 'b.png': folder in front, file ending"
    assert found["cat"] == "there as 'Cat': upper and lower case"
    assert found["dog"] == "there as '\"dog\"': quotation marks"
    assert found["IMG 2.jpg"] == "there as 'img_2': spaces, file ending, upper and lower case"
    assert set(found) == {"12", "sub/b", "cat", "dog", "IMG 2.jpg"}


# Masks


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (ids(_1=255, _2=255), r"0 \(in 6\), 255 \(in 6\)[\s\S]*255 is left out"),
        (ids(_1=0, _2=0, _255=0), r"ids found: 0 \(in 6\)\. Only background"),
        (lambda mask: np.full_like(mask, 255), "ids found: 255"),
        (ids(_0=255, _1=0, _2=1), "'a' is 0, not 1, 'b' is 1, not 2"),
        (ids(_1=0, _2=1), "'b' is 1, not 2"),
        (ids(_1=2, _2=1), "'a' is 2, not 1, 'b' is 1, not 2"),
    ],
)
def test_masks_that_mean_nothing_are_refused_by_run_and_check_alike(tmp_path, tree, change, match):
    remask(tree, change)
    facts, classes = checked(tree)
    text = unusable_masks("train", facts, classes)
    with pytest.raises(DataError, match=match):
        folder_run(tmp_path, tree, "run=[classifier,cam,evaluate]")
    assert not list((tmp_path / "store").glob("classifier-*"))
    with pytest.raises(DataError, match=match) as caught:
        folder_run(tmp_path, tree, "run=[check_data]")
    assert text in str(caught.value)


def test_masks_of_other_images_are_refused(tree):
    (tree / "classes.txt").write_text("a\nb\nc\nd\ne")
    relabel(tree, lambda image_id, _: f"{image_id},{'abcde'[int(image_id[3:]) % 5]}")
    for path in (tree / "SegmentationClass").iterdir():
        write_mask(path, np.full((40, 40), (int(path.stem[3:]) + 1) % 5 + 1))
        Image.new("RGB", (40, 40)).save(tree / "JPEGImages" / f"{path.stem}.jpg")
    facts, classes = checked(tree)
    assert (facts.judged, facts.common) == (0, 0)
    assert "contradict each other" in unusable_masks("train", facts, classes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (ids(), []),
        (ids(_0=255), ["masks_without_background"]),
        (lambda mask: np.where(np.arange(len(mask))[:, None] > 5, 255, mask), ["masks_mostly_ignored"]),
        (lambda mask: np.where(mask > 0, 1, 0), ["masks_differ_from_labels"]),
        (lambda mask: np.where(mask == 2, 255, mask), ["masks_without_class"]),
    ],
)
def test_notes_on_masks(tree, change, expected):
    remask(tree, change)
    facts, classes = checked(tree)
    assert unusable_masks("train", facts, classes) is None
    assert keys(facts, classes) == expected


def test_a_note_where_one_class_of_several_is_numbered_otherwise(tree):
    (tree / "classes.txt").write_text("a\nb\nc")
    relabel(tree, lambda image_id, _: f"{image_id},{'abc'[int(image_id[3:]) % 3]}")
    (tree / LISTS / "train.txt").write_text("\n".join(f"im_{n:02d}" for n in range(9)))
    for path in (tree / "SegmentationClass").iterdir():
        mask = np.array(Image.open(path))
        write_mask(path, np.where((mask > 0) & (mask < 255), [1, 2, 4][int(path.stem[3:]) % 3], mask))
    (tree / "classes.txt").write_text("a\nb\nc\nd")
    facts, classes = checked(tree)
    assert unusable_masks("train", facts, classes) is None
    assert keys(facts, classes) == ["masks_renumbered"]
    assert facts.renumbered == [[2, 4]]


def test_a_note_on_inverted_masks(tree):
    (tree / "classes.txt").write_text("a")
    relabel(tree, lambda image_id, _: f"{image_id},a")
    remask(tree, ids(_0=1, _1=0, _2=0))
    assert keys(*checked(tree)) == ["masks_inverted"]
    remask(tree, ids(_0=1, _1=0))
    assert keys(*checked(tree)) == []


def test_a_note_on_palettes_that_differ(tree):
    for path in (tree / "SegmentationClass").iterdir():
        mask = np.array(Image.open(path))
        colours = voc_palette()
        if path.stem in ("im_00", "im_02"):
            colours[[1, 2]] = colours[[2, 1]]
        write_mask(path, mask, colours)
    facts, classes = checked(tree)
    assert keys(facts, classes) == ["mask_colours"]
    assert facts.colours == [[1, 2]]


def test_gray_values_of_colours_are_no_ids(tree):
    for path in (tree / "SegmentationClass").iterdir():
        Image.open(path).convert("L").save(path)
    with pytest.raises(DataError, match=r"\[38, 220\][\s\S]*gray values of VOC's colours"):
        checked(tree)


def test_labels_from_masks_without_a_class_say_what_the_masks_hold(tmp_path, tree):
    remask(tree, ids(_1=255, _2=255))
    with pytest.raises(DataError, match=r"nothing to learn[\s\S]*hold the ids \[0, 255\]"):
        folder_run(tmp_path, tree, "data.labels=mask")


def test_the_ground_truth_that_a_segmenter_learns_from_has_a_class(tmp_path, tree):
    shutil.copytree(tree / "SegmentationClass", tree / "empty")
    for path in (tree / "empty").iterdir():
        write_mask(path, np.array(Image.open(path)) * 0)
    full = ("segmenter.sources=[full]", "segmenter.masks_dir=empty", "run=[classifier,segmenter]")
    with pytest.raises(DataError, match="no pixel of the 6 masks"):
        folder_run(tmp_path, tree, *full)


def test_no_score_without_a_foreground_pixel(tmp_path, tree):
    confusion = torch.tensor([[[9, 0], [0, 0]], [[9, 0], [0, 1]]])
    assert scores(confusion).miou.isnan().tolist() == [True, False]
    with pytest.raises(DataError, match="no pixel of the masks belongs to a class"):
        mask_scores(torch.tensor([[[9, 0], [9, 0], [9, 0]]]))
    remask(tree, ids(_1=0, _2=0))
    with pytest.raises(DataError, match="nothing can be scored"):
        folder_run(tmp_path, tree, "check_files=false", "run=[classifier,cam,evaluate]")


# Splits


@pytest.mark.parametrize(("others", "common"), [("im_00", 1), ("\n".join(f"im_0{n}" for n in range(6)), 6)])
def test_splits_that_overlap_are_said(tmp_path, tree, capsys, others, common):
    val = tree / LISTS / "val.txt"
    val.write_text(others if common == 6 else val.read_text() + "\n" + others)
    results = folder_run(tmp_path, tree, "run=[classifier]")
    assert [note["key"] for note in results["data"]["notes"]] == ["splits_overlap"]
    assert f"{common} image" in capsys.readouterr().out


def test_a_list_within_the_training_list_is_meant(tmp_path, tree):
    assert check_data(tmp_path, tree, "data.train_split=trainaug")["notes"] == []


def test_a_split_without_labels_is_said(tmp_path, tree):
    relabel(tree, lambda image_id, name: f"{image_id},{name if image_id < 'im_06' else ''}")
    assert [note["key"] for note in check_data(tmp_path, tree)["notes"]] == ["split_without_labels"]
