"""Data sets of one's own: the example, a class that only follows the protocol, and wrong ones."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from quick_run import CONF, settings

from ribseg.data import BaseDataset, ImageDataset, VOCFolder
from ribseg.data.check.survey import survey
from ribseg.errors import ConfigError, DataError
from ribseg.modules import WSSSDataModule
from ribseg.pipeline.run import run

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {"crop_size": 24, "resize_long": (16, 30), "batch_size": 2, "num_workers": 0}


def write_arrays(folder, splits=(("train", 6), ("val", 4))):
    """Two classes, dark squares on noise."""
    generator = np.random.default_rng(0)
    for split, number in splits:
        images = generator.integers(0, 255, (number, 32, 40, 3), dtype=np.uint8)
        labels, masks = np.zeros((number, 2), bool), np.zeros((number, 32, 40), np.uint8)
        for row in range(number):
            labels[row, row % 2] = True
            masks[row, 4:20, 4:20] = row % 2 + 1
        images[:, 4:20, 4:20] //= 3
        np.savez(folder / f"{split}.npz", images=images, labels=labels, masks=masks, classes=["a", "b"])


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Arrays to read, and the examples where a user's code would be."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    write_arrays(tmp_path)
    yield tmp_path
    sys.modules.pop("own_dataset", None)


def own_run(folder, *overrides, name="out"):
    own = ["data=own", "data.dataset._target_=own_dataset.Arrays", f"+data.dataset.folder={folder}"]
    return run(settings("rib_folder", folder, *own, *overrides), folder / name)


class Bare:
    """Nothing but the protocol; images of different sizes."""

    def __init__(self, split, broken=(), **replaced):
        self.split, self.broken = split, broken
        self.ids = [f"{split}{n}" for n in range(4)]
        self.classes, self.labels = ["a", "b"], np.array([[1, 0], [0, 1]] * 2, dtype=bool)
        self.__dict__.update(replaced)

    def image(self, image_id):
        if image_id in self.broken:
            raise OSError("the disk is on fire")
        return np.full((20 + int(image_id[-1]), 30, 3), 7, np.uint8)

    def has_mask(self, image_id):
        return not image_id.endswith("3")

    def mask(self, image_id):
        mask = np.zeros((20 + int(image_id[-1]), 30), np.uint8)
        mask[2:9] = 1 + int(image_id[-1]) % 2
        return mask

    def fingerprint(self, masks=False):
        return f"bare {masks}"


def bare(**settings):
    return WSSSDataModule(dataset=partial(Bare, **settings), eval_splits=["val"], **SMALL)


def test_a_run_on_a_data_set_from_outside(outside):
    results = own_run(outside, "run=[classifier,cam,rib,evaluate,report]")
    for source in ("cam", "rib"):
        assert set(results["localization"][source]["split"]) == {"train", "val"}
    assert json.loads((outside / "out/results.json").read_text())["localization"].keys() >= {"cam", "rib"}
    manifest = json.loads((Path(results["store"]["classifier"]) / "manifest.json").read_text())
    assert "own_dataset.Arrays" in json.dumps(manifest)
    report = (outside / "out/report.html").read_text()
    assert "data:image/png" in report
    # Its source and its content count, each for every stage.
    write_arrays(outside, (("train", 8), ("val", 4)))
    again = own_run(outside, "run=[classifier]", name="again")
    assert again["store"]["classifier"] != results["store"]["classifier"]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_the_whole_chain_on_a_data_set_from_outside(outside, workers):
    results = own_run(
        outside,
        "run=[check_data,classifier,rib,refine,segmenter,evaluate]",
        "refine.variants=[none]",
        f"engine.processes={workers}",  # two: processes of their own, to which the data set travels
        "segmenter.sources=[rib,full]",
        "data.num_workers=1",
        "maps.pool_gib=1",
    )
    assert set(results["segmenter"]) == {"rib", "full"}
    assert results["pseudo_masks"]["variant"] == "none"


def test_without_a_class_the_setting_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.dataset\._target_"):
        run(settings("rib_folder", tmp_path, "data=own", "run=[classifier]"), tmp_path / "out")
    assert (CONF / "data/own.yaml").is_file()


def test_the_protocol_is_enough():
    data = bare()
    assert isinstance(Bare("train"), ImageDataset)
    assert isinstance(data.train, BaseDataset)
    assert (data.classes, data.num_classes, data.all_ids[4]) == (("a", "b"), 2, "val0")
    batch = next(iter(data.train_dataloader()))
    assert (batch.image.shape, batch.labels.shape) == ((2, 3, 24, 24), (2, 2))
    item = data.predict_dataset(["val2"])[0]
    assert (item.id, item.size, item.labels.tolist()) == ("val2", (22, 30), [1, 0])
    images, labels = next(data.references(2)("val0", item.labels, 1))
    assert (images.shape, labels.tolist()) == ((2, 3, 24, 24), [[0, 1], [0, 1]])
    assert data.fingerprint(True) != data.fingerprint(False) == bare().fingerprint(False)
    report = data.check(full=True, masks=False)
    assert report["train"].images == 4
    with pytest.raises(DataError, match="absent masks: 1\n    val3"):
        data.check(full=True)
    with pytest.raises(ConfigError, match=r"from x: Bare reads them with .*Leave segmenter\.masks_dir out"):
        data.train.with_masks("x")
    found = survey(data.evals["val"], masks=False)
    assert (found.kinds, found.masks, found.values.common) == ({"array": 4}, 3, 3)
    assert data.train.plot(data.train[0]).get_suptitle() == "train0: a"


def test_broken_images_can_be_skipped():
    broken = {"broken": ("train1",)}
    with pytest.raises(DataError, match=r"unreadable images: 1\n    train1: .*on fire"):
        bare(**broken).check(masks=False)
    data = WSSSDataModule(dataset=partial(Bare, **broken), eval_splits=["val"], on_error="skip", **SMALL)
    before = data.fingerprint(False)
    assert list(data.check(masks=False)["train"].skipped) == ["train1"]
    data.drop(["train1"])
    assert data.train.ids == ["train0", "train2", "train3"]
    assert data.train.labels.tolist() == [[True, False], [True, False], [False, True]]
    assert len(data.all_ids) == 7
    assert data.train.index("train2") == 1
    assert data.fingerprint(False) != before


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"ids": ["a/b", "c", "d", "e"]}, "no plain file names: 1\n    'a/b'"),
        ({"ids": ["a", "a", "b", "c"]}, "4, different ones 3"),
        ({"ids": []}, "0, different ones 0"),
        ({"labels": np.zeros((4, 2))}, r"expected an array \(4, 2\) of bool, found float64"),
        ({"labels": [[1, 0]] * 4}, "of bool, found list"),
        ({"classes": ["a", "a"]}, "named twice"),
    ],
)
def test_lists_that_cannot_be_used(replaced, message):
    with pytest.raises(DataError, match=message):
        bare(**replaced).setup()


@pytest.mark.parametrize("value", [np.zeros((20, 30), np.uint8), np.zeros((20, 30, 3)), None])
def test_images_that_are_none(value):
    with pytest.raises(DataError, match=r"image train0 of Bare: expected an array \(H, W, 3\) of uint8"):
        bare(image=lambda image_id: value).train[0]


@pytest.mark.parametrize(("value", "message"), [(3, "class ids"), (300, "uint8")])
def test_masks_that_are_none(value, message):
    mask = np.full((20, 30), value, np.uint8 if value < 256 else np.int64)
    with pytest.raises(DataError, match=f"(?s)mask of val0 of Bare.*{message}"):
        bare(mask=lambda image_id: mask).evals["val"].mask("val0")


def test_arguments_that_have_no_effect_or_are_missing(voc_tree):
    with pytest.raises(ConfigError, match=r"give it: data\.root"):
        WSSSDataModule(**SMALL)
    with pytest.raises(ConfigError, match=r"data\.root=.* would have no effect"):
        WSSSDataModule(voc_tree, dataset=Bare, **SMALL)
    with pytest.raises(ConfigError, match=r"data\.dataset\._partial_=true"):
        WSSSDataModule(dataset=Bare("train"), **SMALL)

    class Lacking:
        def __init__(self, split):
            self.ids, self.classes, self.labels = ["a"], ["b"], np.ones((1, 1), bool)

    with pytest.raises(ConfigError, match="Lacking has no image and no has_mask and no mask"):
        WSSSDataModule(dataset=Lacking, **SMALL).setup()


def test_a_reader_of_folders_of_ones_own(voc_tree):
    class Mine(VOCFolder):
        def image(self, image_id):
            return 255 - super().image(image_id)

    mine = WSSSDataModule(dataset=partial(Mine, voc_tree), eval_splits=[], **SMALL)
    plain = WSSSDataModule(voc_tree, eval_splits=[], **SMALL)
    assert isinstance(mine.train, Mine)
    assert (mine.train[0].image == 255 - plain.train[0].image).all()


def test_defaults_of_the_base_class():
    class Least(BaseDataset):
        def __init__(self, split, shade=0):
            self.ids, self.classes, self.labels, self.shade = ["a"], ("b",), np.ones((1, 1), bool), shade

        def image(self, image_id):
            return np.full((3, 4, 3), self.shade, np.uint8)

    data = WSSSDataModule(dataset=Least, eval_splits=[], **SMALL)
    assert not data.train.has_mask("a")
    assert data.train.size("a") == (3, 4)
    with pytest.raises(DataError, match="Least has no mask of the image 'a'"):
        data.train.mask("a")
    assert Least("x").fingerprint() == Least("y").fingerprint() != Least("x", 1).fingerprint()
