"""One data module for all stages, with and without a Trainer, in one and in two processes."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from make_trees import CLASSES

from ribseg.errors import ConfigError, DataError, RibsegError
from ribseg.modules.data_module import WSSSDataModule

SMALL = {"crop_size": 24, "resize_long": (16, 30), "eval_resize_long": 20, "batch_size": 3, "num_workers": 0}


@pytest.fixture
def module(voc_tree):
    return WSSSDataModule(voc_tree, **SMALL)


def test_splits(module):
    module.setup()
    assert module.train.split == "train"
    assert list(module.evals) == ["train", "val"]
    assert module.evals["train"] is module.train
    assert (module.num_classes, module.classes) == (3, CLASSES)
    assert module.all_ids == [*module.train.ids, *module.evals["val"].ids]


def test_overlapping_splits_serve_each_image_once(voc_tree):
    ids = (voc_tree / "ImageSets/Segmentation/train.txt").read_text().split()
    (voc_tree / "ImageSets/Segmentation/trainaug.txt").write_text("\n".join(ids[::-1]))
    module = WSSSDataModule(voc_tree, "trainaug", ("train", "val"), **SMALL)
    assert module.all_ids == [*ids[::-1], *module.evals["val"].ids]
    assert len(module.predict_dataset()) == 12


def test_images_held_out_are_in_no_training_split(voc_tree):
    ids = (voc_tree / "ImageSets/Segmentation/train.txt").read_text().split()
    (voc_tree / "ImageSets/Segmentation/trainaug.txt").write_text("\n".join(ids[::-1]))
    whole = WSSSDataModule(voc_tree, "trainaug", (), "train", **SMALL)
    module = WSSSDataModule(voc_tree, "trainaug", ("held_out", "val"), "train", held_out=0.25, **SMALL)
    held = module.evals["held_out"]
    assert len(held) == round(0.25 * len(ids))
    assert {*held.ids} | {*module.train.ids} == {*ids}
    assert {*held.ids} | {*module.pseudo.ids} == {*ids}
    assert {*held.ids}.isdisjoint(module.train.ids)
    assert {*held.ids}.isdisjoint(module.pseudo.ids)
    assert module.train.ids == [name for name in whole.train.ids if name not in held.ids]  # order kept
    for name in held.ids:
        assert (held.labels[held.index(name)] == whole.train.labels[whole.train.index(name)]).all()
        assert held.mask(name).shape == held.image(name).shape[:2]
    assert module.fingerprint(masks=True) != whole.fingerprint(masks=True)
    again = WSSSDataModule(voc_tree, "trainaug", "held_out", "train", held_out=0.25, seed=7, **SMALL)
    assert again.evals["held_out"].ids == held.ids


def test_only_the_images_held_out_can_be_mapped(voc_tree):
    module = WSSSDataModule(voc_tree, eval_splits="held_out", pseudo_split="held_out", held_out=0.25, **SMALL)
    assert module.all_ids == module.evals["held_out"].ids
    assert len(module.train) == 6


@pytest.mark.parametrize(
    ("share", "splits", "message"),
    [
        (0.2, ("val",), "nothing would look at them: name the split, data.eval_splits=\\[held_out\\]"),
        (1.0, ("held_out",), "data.held_out=1.0 would leave none of 8 images for training"),
        (-0.1, ("held_out",), "held_out: expected a number in \\[0, 1\\], got -0.1"),
        (0, ("held_out",), "held_out"),
    ],
)
def test_a_share_that_cannot_be_held_out_is_refused(voc_tree, share, splits, message):
    with pytest.raises(RibsegError, match=message):
        WSSSDataModule(voc_tree, eval_splits=splits, held_out=share, **SMALL).setup()


def test_train_batches(module):
    loader = module.train_dataloader()
    first, second = list(loader), list(loader)
    assert [len(batch.id) for batch in first] == [3, 3]  # 8 images, the incomplete batch is dropped
    assert first[0].image.shape == (3, 3, 24, 24)
    assert first[0].labels.shape == (3, 3)
    assert [batch.id for batch in first] != [batch.id for batch in second]
    for again, before in zip(module.train_dataloader(), first, strict=True):
        assert again.id == before.id
        assert torch.equal(again.image, before.image)


def test_less_than_a_batch_is_kept(voc_tree):
    module = WSSSDataModule(voc_tree, **{**SMALL, "batch_size": 50})
    assert [len(batch.id) for batch in module.train_dataloader()] == [8]


def test_val_batches(module, voc_tree):
    batches = list(module.val_dataloader())
    assert [len(batch.id) for batch in batches] == [3, 1]
    assert torch.equal(batches[0].image, next(iter(module.val_dataloader())).image)
    assert WSSSDataModule(voc_tree, eval_splits="train", **SMALL).val_dataloader() == []


def test_validation_takes_a_split_that_was_not_learnt(voc_tree):
    """As VOC's train in trainaug: scores on images that the classifier has learnt from say nothing."""
    lists = voc_tree / "ImageSets/Segmentation"
    ids = (lists / "train.txt").read_text().split()
    (lists / "trainaug.txt").write_text("\n".join(ids))
    module = WSSSDataModule(voc_tree, "trainaug", ("train", "val"), **SMALL)
    assert [i for batch in module.val_dataloader() for i in batch.id] == module.evals["val"].ids
    only_learnt = WSSSDataModule(voc_tree, "trainaug", ("train",), **SMALL)
    assert [i for batch in only_learnt.val_dataloader() for i in batch.id] == ids


def test_prediction_items(module):
    ids = [module.evals["val"].ids[1], module.train.ids[0]]
    items = list(module.prediction_loader(ids))
    assert [item.id for item in items] == ids
    assert items[1].size == (37, 50)
    assert [view.shape[0] for view in items[1].views] == [2, 2, 2, 2]
    assert len(module.predict_dataloader()) == 12
    assert len(module.prediction_loader(ids[:1])) == 1
    assert [item.id for item in module.prediction_loader(ids, processes=5)] == [*ids, *ids, ids[0]]
    assert len(module.prediction_loader([])) == 0
    assert [len(item.views) for item in module.prediction_loader(ids, scales=(1.0,))] == [1, 1]


def test_references_come_from_the_train_split(module):
    index = 2
    references = module.references(batch_size=4)
    images, labels = next(references(module.train.ids[index], module.train.labels[index], 5))
    assert images.shape == (4, 3, 24, 24)
    assert (labels[:, module.train.labels[index]] == 0).all()
    assert references.sampler.ids == module.train.ids


def test_workers_serve_the_same_and_everything_pickles(voc_tree, module):
    parallel = WSSSDataModule(voc_tree, **{**SMALL, "num_workers": 2})
    for one, two in zip(module.predict_dataloader(), parallel.predict_dataloader(), strict=True):
        assert one.id == two.id
        assert all(torch.equal(a, b) for a, b in zip(one.views, two.views, strict=True))
    batches = list(parallel.train_dataloader())
    assert len(batches) == 2
    loader = parallel.train_dataloader()
    parts = (
        loader.dataset,
        loader.worker_init_fn,
        loader.collate_fn,
        parallel.predict_dataloader().collate_fn,
    )
    assert pickle.loads(pickle.dumps(parts))[0][0].image.shape == (3, 24, 24)  # noqa: S301  (our own bytes)


def test_check(module, voc_tree):
    reports = module.check(full=True)
    assert {split: report.masks for split, report in reports.items()} == {"train": 8, "val": 4}
    for image_id in (module.train.ids[0], module.evals["val"].ids[0]):
        (voc_tree / "JPEGImages" / f"{image_id}.jpg").write_text("broken")
    with pytest.raises(DataError, match=r"(?s)'train'.*'val'"):
        module.check()


def test_training_needs_no_masks(voc_tree):
    module = WSSSDataModule(voc_tree, eval_splits=["val"], **SMALL)
    (voc_tree / "SegmentationClass" / f"{module.train.ids[0]}.png").unlink()
    assert module.check()["train"].masks == 0
    both = WSSSDataModule(voc_tree, **SMALL)
    assert both.check(masks=False)["train"].masks == 0
    with pytest.raises(DataError, match="absent masks: 1"):
        both.check()


def test_a_mended_mask_of_the_same_size_is_another_mask(module, voc_tree):
    before, images = module.fingerprint(masks=True), module.fingerprint(masks=False)
    path = next((voc_tree / "SegmentationClass").glob("*.png"))
    good = path.read_bytes()
    end = good.rindex(b"IEND") - 8  # of the checksum of the last portion of pixels
    path.write_bytes(good[:end] + bytes(b ^ 255 for b in good[end : end + 4]) + good[end + 4 :])
    assert len(path.read_bytes()) == len(good)
    assert module.fingerprint(masks=True) != before
    assert module.fingerprint(masks=False) == images


def test_fingerprint(module, voc_tree, tmp_path):
    before = module.fingerprint(masks=True)
    voc_tree.rename(tmp_path / "moved")
    moved = WSSSDataModule(tmp_path / "moved", **SMALL)
    assert moved.fingerprint(masks=True) == before != moved.fingerprint(masks=False)
    assert WSSSDataModule(tmp_path / "moved", eval_splits=["val"], **SMALL).fingerprint(True) == before
    assert WSSSDataModule(tmp_path / "moved", eval_splits=["train"], **SMALL).fingerprint(True) != before


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"num_workers": -1},
        {"num_workers": "many"},
        {"std": (1, 1, 0)},
        {"mean": (0.5,)},
        {"scales": ()},
    ],
)
def test_wrong_settings(voc_tree, wrong):
    with pytest.raises(ConfigError, match="expected"):
        WSSSDataModule(voc_tree, **{**SMALL, **wrong})


def test_auto_workers(voc_tree):
    assert 1 <= WSSSDataModule(voc_tree, **{**SMALL, "num_workers": "auto"}).num_workers <= 8


def trainer_of(processes, rank, epoch=0):
    progress = SimpleNamespace(current=SimpleNamespace(processed=epoch))
    fit_loop = SimpleNamespace(epoch_progress=progress)
    return SimpleNamespace(world_size=processes, global_rank=rank, fit_loop=fit_loop)


def test_global_batch_is_divided(module):
    module.trainer = trainer_of(3, 1)
    assert [len(batch.id) for batch in module.train_dataloader()] == [1, 1]
    module.trainer = trainer_of(2, 1)
    with pytest.raises(ConfigError, match=r"batch_size=3 .* does not divide by the 2"):
        module.train_dataloader()


def test_pseudo_masks_may_be_of_a_part_of_what_the_classifier_learns_from(voc_tree):
    lists = voc_tree / "ImageSets/Segmentation"
    ids = (lists / "train.txt").read_text().split()
    (lists / "part.txt").write_text("\n".join(ids[2:5]))
    module = WSSSDataModule(voc_tree, eval_splits=("val",), pseudo_split="part", **SMALL)
    assert module.pseudo.ids == ids[2:5]
    assert module.all_ids == [*ids[2:5], *module.evals["val"].ids]
    assert [dataset.split for dataset in module.splits] == ["train", "part", "val"]
    assert module.predict_dataset([ids[0]])[0].id == ids[0]  # a rate is searched on training images
    assert WSSSDataModule(voc_tree, **SMALL).pseudo.split == "train"
