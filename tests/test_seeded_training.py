"""A training is a function of its settings: not of workers, processes, or interruptions."""

import random
import warnings
from itertools import islice

import albumentations as A
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from quick_run import folder_run
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ribseg.data.augment.seeding import SeededDataset, TrainingBatches, ValidationBatches, batch_loader
from ribseg.data.augment.segmentation import (
    SegmentationDataset,
    segmentation_eval_transform,
    segmentation_train_transform,
)
from ribseg.data.augment.transforms import seeded, train_transform
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError
from ribseg.modules.data_module import WSSSDataModule
from ribseg.modules.epoch_data import SamplesCheck
from ribseg.modules.segmentation_data import CropDataModule, SegmentationDataModule
from ribseg.types import Sample

SMALL = {"crop_size": 24, "resize_long": (16, 30), "eval_resize_long": 20, "batch_size": 4}
WORKERS = (1, 3)


class Tiny(pl.LightningModule):
    """A network with dropout that learns as fast as can be: any other sample or random number shows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 3))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen += batch.id
        labelled = isinstance(batch, Sample)
        target = batch.labels[..., None, None] if labelled else batch.mask.float().mean() / 255
        return (self.network(batch.image) - target).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/mean", self.network(batch.image).mean(), batch_size=len(batch.image))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, data, folder, epochs=2, resume=None, **settings):
    quiet = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
        "num_sanity_val_steps": 0, "enable_checkpointing": False,
    }  # fmt: skip
    trainer = pl.Trainer(max_epochs=epochs, default_root_dir=folder, **(quiet | settings))
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer


def weights_after(data, folder, **settings):
    pl.seed_everything(5, workers=True, verbose=False)
    module = Tiny()
    fit(module, data, folder, **settings)
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


def classifier_data(tree, workers=0, **settings):
    return WSSSDataModule(tree, **(SMALL | {"num_workers": workers} | settings))


def crops(tree, transform):
    folder = VOCFolder(tree, "train")
    return SegmentationDataset(folder.ids, folder.image, folder.mask, transform)


def affinity_data(tree, workers=0):
    train, val = crops(tree, segmentation_train_transform(24)), crops(tree, segmentation_eval_transform(24))
    return CropDataModule(train, val, 4, workers, seed=3)


class GlobalRandom(Dataset):
    """A data set of one's own that draws from everything that there is."""

    def __init__(self):
        self.generator, self.own = np.random.default_rng(), random.Random()
        self.crop, self.flips = A.Compose([A.RandomCrop(4, 4)]), [A.HorizontalFlip(p=0.5)]

    def __len__(self):
        return 11

    def reseed(self, seed):
        self.generator, self.own = np.random.default_rng(seed), random.Random(seed)
        seeded(self.flips[0], seed)

    def __getitem__(self, index):
        image = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
        crop = np.ascontiguousarray(self.flips[0](image=self.crop(image=image)["image"])["image"])
        drawn = random.random() + np.random.rand() + torch.rand(()).item()
        drawn += self.generator.random() + self.own.random()
        pixels = torch.from_numpy(crop).permute(2, 0, 1).float() / 300 + index / 11
        image = nn.functional.interpolate(pixels[None], (24, 24))[0] * drawn
        return Sample(str(index), image, torch.ones(3))


class OwnData(WSSSDataModule):
    def train_dataloader(self):
        return self.training_batches(GlobalRandom())


def own_data(tree, workers=0):
    return OwnData(tree, **SMALL, num_workers=workers)


class OwnTransform(WSSSDataModule):
    """Its transform is a method that draws from the global generators."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.train_transform = self.shifted

    def shifted(self, image):
        pixels = torch.from_numpy(np.resize(image, (24, 24, 3))).permute(2, 0, 1) / 255
        return {"image": pixels + torch.rand(1) + np.random.rand() + random.random()}


def own_transform_data(tree, workers=0):
    return OwnTransform(tree, **SMALL, num_workers=workers)


@pytest.mark.parametrize("make", [classifier_data, affinity_data, own_data, own_transform_data])
def test_the_number_of_workers_changes_no_bit(voc_tree, tmp_path, make):
    expected = weights_after(make(voc_tree), tmp_path)
    assert expected.isfinite().all()
    for workers in WORKERS:
        assert torch.equal(weights_after(make(voc_tree, workers), tmp_path), expected)


def test_the_number_of_workers_changes_no_bit_of_a_training_by_iterations(voc_tree, tmp_path):
    train, val = crops(voc_tree, segmentation_train_transform(24)), None
    settings = {"epochs": -1, "max_steps": 5, "use_distributed_sampler": False}
    found = [
        weights_after(SegmentationDataModule(train, val, 3, num_workers=workers), tmp_path, **settings)
        for workers in (0, *WORKERS)
    ]
    assert found[0].isfinite().all()
    assert all(torch.equal(weights, found[0]) for weights in found)


def test_the_seed_and_the_epoch_change_the_samples(voc_tree):
    module = classifier_data(voc_tree)
    first, second = list(module.train_dataloader()), list(module.train_dataloader())
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.image, two.image)
    other = list(classifier_data(voc_tree, seed=1).train_dataloader())
    assert not torch.equal(first[0].image, other[0].image)
    dataset = module.train_dataloader().dataset
    assert torch.equal(dataset[(2, 3)].image, dataset[(2, 3)].image)
    assert not torch.equal(dataset[(2, 3)].image, dataset[(2, 4)].image)
    assert torch.equal(dataset[2].image, dataset[(2, 0)].image)


def test_an_image_is_augmented_alike_wherever_it_is_listed(voc_tree):
    folder = VOCFolder(voc_tree, "train").with_transform(train_transform(16, (20, 30)))
    part = folder.without(folder.ids[:2])
    one, two = SeededDataset(folder)[(3, 7)], SeededDataset(part)[(1, 7)]
    assert one.id == two.id
    assert torch.equal(one.image, two.image)


def test_what_the_main_process_draws_is_left_alone():
    dataset = SeededDataset(GlobalRandom())
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    threads = torch.get_num_threads()
    first = [dataset[(i, 0)].image for i in range(3)]
    for batches in (TrainingBatches(11, 4), ValidationBatches(11, 4)):
        next(iter(batch_loader(GlobalRandom(), batches)))
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    assert torch.get_num_threads() == threads
    again = SeededDataset(GlobalRandom())
    again[(5, 0)]
    assert all(torch.equal(a, again[(i, 0)].image) for i, a in enumerate(first))


def test_an_error_in_an_item_leaves_the_streams_alone():
    class Broken(Dataset):
        def __getitem__(self, index):
            raise ValueError(index)

    torch.manual_seed(1)
    expected = torch.get_rng_state()
    with pytest.raises(ValueError, match="3"):
        SeededDataset(Broken())[3]
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("images", [8, 11, 12, 13, 3])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_out_the_batches_of_one(images, processes):
    def steps(epoch, rank=0, number=1):
        sampler = TrainingBatches(images, 4, 9, rank=rank, processes=number)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        return batches

    for epoch in (0, 3):
        one = steps(epoch)
        assert len(one) == max(images // 4, 1)
        shares = [steps(epoch, rank, processes) for rank in range(processes)]
        assert all(shares[0] and len(share) == len(one) for share in shares)
        for step, batch in enumerate(one):
            together = [place for share in shares for place in share[step]]
            # With fewer images than processes one comes twice.
            assert together[: len(batch)] == batch
            assert set(together) == set(batch)
    assert steps(0) != steps(1)
    assert {index for batch in steps(0) for index, _ in batch} <= set(range(images))


def test_an_epoch_has_each_image_at_most_once():
    indices = [index for batch in TrainingBatches(11, 4) for index, _ in batch]
    assert len(indices) == len(set(indices)) == 8
    assert sorted(index for batch in TrainingBatches(3, 4) for index, _ in batch) == [0, 1, 2]


def test_iterations_and_epochs_have_one_order():
    endless, epochs = iter(TrainingBatches(8, 4, seed=2, first=0)), TrainingBatches(8, 4, seed=2)
    assert [next(endless) for _ in range(4)] == [*epochs, *epochs]


def test_batches_are_a_function_of_the_iteration():
    def take(number, first=0, **settings):
        return list(islice(TrainingBatches(7, 4, seed=3, first=first, **settings), number))

    whole = take(9)
    assert take(4, first=5) == whole[5:]
    halves = [take(9, rank=rank, processes=2) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    images = [index for batch in whole for index, _ in batch]
    assert sorted(images[:7]) == sorted(images[7:14]) == list(range(7))
    assert images[:7] != images[7:14]
    assert [epoch for batch in whole for _, epoch in batch] == [position // 7 for position in range(36)]
    with pytest.raises(TypeError, match="no end"):
        len(TrainingBatches(7, 4, first=0))


@pytest.mark.parametrize("images", range(1, 14))
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_validation_has_each_image_once_and_equally_many_steps(images, processes):
    shares = [list(ValidationBatches(images, 6, rank, processes)) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert all(batch for share in shares for batch in share)
    seen = sorted(index for share in shares for batch in share for index in batch)
    assert set(seen) == set(range(images))
    assert len(seen) == max(images, processes)


def test_batches_that_cannot_be():
    with pytest.raises(ConfigError, match="does not divide by the 3"):
        TrainingBatches(8, 4, processes=3)
    with pytest.raises(ConfigError, match="batch_size=0"):
        TrainingBatches(8, 0, first=0)
    with pytest.raises(ConfigError, match="does not divide by the 3"):
        ValidationBatches(8, 4, processes=3)
    with pytest.raises(ConfigError, match="got none"):
        TrainingBatches(0, 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_after_an_epoch_equals_never_having_stopped(voc_tree, tmp_path, workers):
    def run(epochs, resume=None):
        module, keep = Tiny().eval(), pl.callbacks.ModelCheckpoint(tmp_path, "last", save_last=False)
        module.network[2] = nn.Identity()  # Lightning's checkpoints do not hold the stream of the dropout
        settings = {"callbacks": [keep], "enable_checkpointing": True}
        fit(module, classifier_data(voc_tree, workers), tmp_path, epochs, resume, **settings)
        return keep.best_model_path, module

    _, whole = run(4)
    checkpoint, first = run(2)
    _, second = run(4, checkpoint)
    assert first.seen + second.seen == whole.seen
    assert len(set(map(tuple, np.reshape(whole.seen, (4, -1))))) == 4
    for one, two in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)


def test_samples_left_to_chance_are_said(voc_tree, tmp_path):
    class Chance(WSSSDataModule):
        def train_dataloader(self):
            return DataLoader(super().train_dataloader().dataset, 4, shuffle=True)

    settings = {"epochs": 1, "callbacks": [SamplesCheck()], "limit_val_batches": 0}
    with pytest.warns(UserWarning, match="training_batches"):
        fit(Tiny(), Chance(voc_tree, **SMALL, num_workers=0), tmp_path, **settings)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(Tiny(), classifier_data(voc_tree), tmp_path, **settings)
    assert not [warning for warning in said if "training_batches" in str(warning.message)]


CHAIN = (
    "run=[classifier,rib,affinity_labels,affinity,pseudo_masks,segmenter_rib]",
    "refine.variants=[none]",
    "classifier.epochs=2",
    "affinity.epochs=2",
)


def weights_in(store):
    """Files of weights that the stages of a store have left."""
    return [file for name in ("*.pt", "*.safetensors") for file in sorted(store.glob(f"*/{name}"))]


def test_the_stages_leave_the_same_weights_for_any_number_of_workers(tree, tmp_path):
    def weights(workers):
        folder = tmp_path / f"workers-{workers}"
        folder_run(folder, tree, *CHAIN, f"data.num_workers={workers}")
        return {file.parent.name: file.read_bytes() for file in weights_in(folder / "store")}

    expected = weights(0)
    assert len(expected) == 3
    assert weights(2) == expected


@pytest.mark.parametrize("setting", ["data.batch_size", "affinity.batch_size"])
def test_a_batch_that_does_not_divide_is_said_before_the_first_stage(tree, tmp_path, setting):
    two = ("trainer.devices=2", "trainer.strategy=ddp", f"{setting}=3")
    with pytest.raises(ConfigError, match=f"{setting}=3 .* does not divide by the 2"):
        folder_run(tmp_path, tree, *CHAIN, *two)
    assert not weights_in(tmp_path / "store")
