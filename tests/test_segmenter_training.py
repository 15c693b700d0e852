"""Training of the segmenter by iterations: overfitting, going on exactly, batches over processes."""

import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler

from ribseg.data.augment.seeding import TrainingBatches, batch_loader
from ribseg.data.augment.segmentation import (
    CountedDataset,
    SegmentationDataset,
    segmentation_train_transform,
    whole_image_transform,
)
from ribseg.data.feed.views import only_item
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError, DataError
from ribseg.functional.losses import segmentation_loss
from ribseg.models import DeepLabV2
from ribseg.modules.segmentation import SegmentationModule, multi_scale_logits
from ribseg.modules.segmentation_data import SegmentationDataModule
from ribseg.pipeline.stages.segmenter import training_callbacks
from ribseg.types import MaskSample

SMALL = {"backbone": "resnet10t", "backbone_kwargs": {"channels": [8, 16, 24, 32], "stem_width": 8}}


def small_model(num_classes=4, **settings):
    torch.manual_seed(0)
    return DeepLabV2(num_classes, norm="train", dilations=(1, 2), **(SMALL | settings))


def data(tree, split="train", transform=None):
    folder = VOCFolder(tree, split)
    return SegmentationDataset(folder.ids, folder.image, folder.mask, transform)


def data_module(tree, **settings):
    train = data(tree, transform=segmentation_train_transform(32, (0.8, 1.2)))
    val = data(tree, "val", whole_image_transform())
    return SegmentationDataModule(train, val, **({"batch_size": 4} | settings))


def trainer(folder, steps, *callbacks, **settings):
    quiet = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
        "enable_checkpointing": bool(callbacks), "num_sanity_val_steps": 0, "use_distributed_sampler": False,
        "max_epochs": -1, "check_val_every_n_epoch": None, "val_check_interval": 1000,
    }  # fmt: skip
    return pl.Trainer(
        max_steps=steps, default_root_dir=folder, callbacks=list(callbacks), **(quiet | settings)
    )


def test_batches_do_not_depend_on_the_workers(voc_tree):
    dataset = data(voc_tree, transform=segmentation_train_transform(32))
    loaders = [batch_loader(dataset, TrainingBatches(8, 3, first=0), workers) for workers in (0, 2)]
    for one, two in itertools.islice(zip(*loaders, strict=False), 5):
        assert torch.equal(one.image, two.image)
        assert torch.equal(one.mask, two.mask)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_validation_counts_each_image_once(voc_tree, processes):
    dataset = CountedDataset(data(voc_tree, "val"), processes)
    shares = [list(DistributedSampler(dataset, processes, rank, shuffle=False)) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    items = [dataset[index] for share in shares for index in share]
    counted = [item.id for item in items if item.counts]
    assert sorted(counted) == sorted(dataset.dataset.ids)


def test_three_learning_rates_and_their_decay(voc_tree, tmp_path):
    module = SegmentationModule(small_model(), lr=1e-3)
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    run = trainer(tmp_path, 4, Watch(), limit_val_batches=0, enable_checkpointing=False)
    run.fit(module, datamodule=data_module(voc_tree))
    factors = [(1 - step / 4) ** 0.9 for step in (1, 2, 3, 4)]
    np.testing.assert_allclose(
        rates, [[1e-3 * f, 1e-2 * f, 2e-2 * f] for f in factors], rtol=1e-6, atol=1e-12
    )
    groups = run.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 5e-4, 0]
    assert [group["momentum"] for group in groups] == [0.9] * 3


def test_multi_scale_loss():
    model = small_model().eval()
    images = torch.randn(1, 3, 64, 64)
    parts = multi_scale_logits(model, images, (1.0, 0.5))
    assert [tuple(part.shape[-2:]) for part in parts] == [(8, 8), (4, 4), (8, 8)]
    assert torch.equal(parts[0], model(images))
    assert (parts[2] >= parts[0]).all()
    module = SegmentationModule(model, loss_scales=(1.0, 0.5)).eval()
    mask = torch.randint(0, 4, (1, 64, 64), dtype=torch.uint8)
    loss = module.loss(MaskSample("a", images, mask))
    expected = sum(segmentation_loss(part, mask, at="logits") for part in parts)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    "settings", [{"loss_scales": ()}, {"loss_scales": (0,)}, {"class_weights": [1, 2]}, {"loss_at": "here"}]
)
def test_settings_that_cannot_work(settings):
    with pytest.raises(ConfigError, match="expected"):
        SegmentationModule(small_model(), **settings)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "message"),
    [(4, 3, "does not divide"), (0, 1, "batch_size: expected an integer >= 1, got 0"), (4, 0, "accumulate")],
)
def test_the_recipe_batch_must_divide(voc_tree, batch_size, accumulate, message):
    with pytest.raises(ConfigError, match=message):
        data_module(voc_tree, batch_size=batch_size, accumulate=accumulate)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("accumulate", "average", "validate"), [(1, False, False), (2, False, False), (1, True, True)]
)
def test_going_on_equals_never_having_stopped(voc_tree, tmp_path, accumulate, average, validate):
    """Bit for bit, in the middle of a pass over the images, with all of the state."""

    def fit(steps, folder, resume=None, stop=None):
        settings = {"every_n_train_steps": None if validate else 3}
        last = ModelCheckpoint(
            folder, filename="last", save_top_k=1, enable_version_counter=False, **settings
        )
        callbacks = [last, *([EMAWeightAveraging(decay=0.9)] if average else [])]
        if stop is not None:
            callbacks.append(Stop(stop))
        module = SegmentationModule(small_model(), lr=1e-2, loss_at="target")
        run = trainer(
            folder, steps, *callbacks, accumulate_grad_batches=accumulate,
            limit_val_batches=1.0 if validate else 0, val_check_interval=3 * accumulate,
        )  # fmt: skip
        data = data_module(voc_tree, accumulate=accumulate, seed=1)
        run.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        return module

    whole = fit(9, tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(9, tmp_path / "cut", stop=4)
    stopped = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    assert stopped["global_step"] == 3
    resumed = fit(9, tmp_path / "cut", resume=tmp_path / "cut" / "last.ckpt")
    first, second = weights(whole), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    ends = [torch.load(tmp_path / n / "last.ckpt", weights_only=True) for n in ("whole", "cut")]
    assert [end["global_step"] for end in ends] == [9, 9]
    assert all(torch.equal(ends[0]["state_dict"][n], ends[1]["state_dict"][n]) for n in ends[0]["state_dict"])


class Stop(pl.Callback):
    """A kill in the middle of the training."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == self.step:
            raise SystemExit


def test_the_best_state_survives_going_on(voc_tree, tmp_path):
    scores = {2: 0.3, 4: 0.9, 6: 0.5}

    class Scripted(SegmentationModule):
        def on_validation_epoch_end(self):
            self.val_confusion.reset()
            self.log("val/miou", torch.tensor(scores[self.trainer.global_step]))

    settings = SimpleNamespace(check_every=2, average=None)

    def fit(resume=None, stop=None):
        callbacks = training_callbacks(settings, tmp_path / "checkpoints", validates=True)
        run = trainer(
            tmp_path,
            6,
            *callbacks,
            *([Stop(stop)] if stop else []),
            limit_val_batches=1.0,
            val_check_interval=2,
        )
        run.fit(
            Scripted(small_model()), datamodule=data_module(voc_tree), ckpt_path=resume, weights_only=True
        )

    with pytest.raises(SystemExit):
        fit(stop=5)
    fit(resume=tmp_path / "checkpoints" / "last.ckpt")
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 4
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_large_images_are_watched_in_tiles():
    torch.manual_seed(0)
    sides = []

    class Local(torch.nn.Module):
        """Labels each pixel by itself, so that tiles cannot matter."""

        num_classes = 3

        def forward(self, images):
            sides.append(tuple(images.shape[-2:]))
            return images

    item = MaskSample("a", torch.randn(3, 40, 21), torch.randint(0, 3, (40, 21)))
    scores = []
    for tile in (None, 16, 64):
        module = SegmentationModule(Local(), tile=tile, margin=3)
        module.validation_step(item, 0)
        scores.append(module.val_confusion.compute())
        assert max(map(max, sides)) == (16 if tile == 16 else 40)
        sides.clear()
    for found in scores[1:]:
        assert torch.equal(found.iou, scores[0].iou)
    with pytest.raises(ConfigError, match="tile > 2"):
        SegmentationModule(Local(), tile=16, margin=8)
    with pytest.raises(DataError, match=r"one size, got \(40, 21\) and \(80, 42\)"):
        SegmentationModule(Local()).validation_step(item._replace(mask=torch.zeros(80, 42)), 0)


def test_mixed_precision_trains(voc_tree, tmp_path):
    module = SegmentationModule(small_model())
    before = weights(module)
    run = trainer(tmp_path, 2, precision="bf16-mixed")
    run.fit(module, datamodule=data_module(voc_tree))
    assert any(not torch.equal(before[name], value) for name, value in weights(module).items())
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    assert "val/miou" in run.validate(module, datamodule=data_module(voc_tree), verbose=False)[0]


def test_overfits_eight_images(tmp_path):
    """From random weights: the parts fit together."""
    from make_trees import make_voc_tree

    tree = make_voc_tree(tmp_path / "tree")
    folder = VOCFolder(tree, "train")
    assert len(folder) == 8
    train = data(tree, transform=segmentation_train_transform(72, (1.0, 1.0), flip=0.0))
    val = data(tree, "train", whole_image_transform())
    module = SegmentationModule(
        small_model(weights=None), lr=2e-2, head_lr_factor=1, head_bias_lr_factor=1, loss_at="target",
        optimizer=partial(torch.optim.AdamW, weight_decay=0.0),
    )  # fmt: skip
    run = trainer(tmp_path, 120, limit_val_batches=0)
    run.fit(module, datamodule=SegmentationDataModule(train, None, batch_size=8))
    loader = DataLoader(val, batch_size=1, collate_fn=only_item)
    score = trainer(tmp_path, 1).validate(module, loader, verbose=False)[0]["val/miou"]
    assert score > 0.95
