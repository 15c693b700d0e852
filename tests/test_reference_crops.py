"""Crops of reference images that a GPU makes are those of the CPU."""

from contextlib import nullcontext
from copy import deepcopy

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from test_rib_speed import HostWaits

from ribseg.data.augment.transforms import (
    draw_crop,
    eval_transform,
    is_train_transform,
    seeded,
    train_transform,
)
from ribseg.data.feed import reference_crops
from ribseg.data.feed.reference_crops import Cut, DeviceCrops, HostCrops, PerThread, cut_crops
from ribseg.data.feed.references import ReferenceBatches, ReferenceSampler
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError, DataError

SIDE = 48
CPU = torch.device("cpu")
# Height and width: of all shapes, up to twice as tall as wide; enlarged, reduced, cut and padded below.
SIZES = [(60, 80), (80, 60), (30, 200), (120, 61), (1, 1), (1, 90), (2, 3), (48, 48), (333, 500), (200, 100)]


def image(size, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1 + seed % 3).reshape(*size, 3) if seed % 2 else noise


def crops_of(kind, transform, images, *where):
    rows = (len(images), 3, SIDE, SIDE) if kind is HostCrops else len(images)
    crops = kind(PerThread(transform), rows, *where)
    for row, pixels in enumerate(images):
        crops.put(row, pixels, seed=row)
    return crops.take()


def levels(ours, theirs):
    """Differences in levels of 255."""
    return (ours - theirs).abs() * 255 * torch.tensor(IMAGENET_STD)[:, None, None]


def close(ours, theirs):
    apart = levels(ours, theirs)
    return float(apart.max()) < 1.01 and float((apart > 0.01).float().mean()) < 0.02


@pytest.mark.parametrize("resize_long", [(10, 40), (30, 120), (48, 48), (500, 500)])
def test_a_device_makes_the_crops_of_the_cpu(resize_long):
    transform = train_transform(SIDE, resize_long)
    images = [image(size, seed) for seed, size in enumerate(SIZES * 3)]
    ours, theirs = crops_of(DeviceCrops, transform, images, CPU), crops_of(HostCrops, transform, images)
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    assert close(ours, theirs)
    assert torch.equal(ours == 0, theirs == 0)  # beside the image


def test_other_statistics():
    transform = train_transform(SIDE, (30, 60), mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25))
    images = [image(size, seed) for seed, size in enumerate(SIZES)]
    ours, theirs = crops_of(DeviceCrops, transform, images, CPU), crops_of(HostCrops, transform, images)
    assert float(((ours - theirs).abs() * 255 * torch.tensor([1.0, 0.5, 0.25])[:, None, None]).max()) < 1.01


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_drawing_a_crop_takes_the_same_numbers_as_making_it(flip):
    transform = train_transform(SIDE, (30, 120), flip=flip)
    mirrored = []
    for seed, size in enumerate(SIZES * 4):
        called, drawn = seeded(deepcopy(transform), seed), seeded(deepcopy(transform), seed)
        called(image=image(size, seed))
        crop = draw_crop(drawn, *size)
        assert drawn.py_random.random() == called.py_random.random()
        assert max(crop.height, crop.width) in range(30, 121)
        mirrored.append(crop.mirrored)
    assert {0.0: {False}, 0.5: {False, True}, 1.0: {True}}[flip] == set(mirrored)


def test_large_images_are_cut_in_groups(monkeypatch):
    images = [image(size, seed) for seed, size in enumerate(SIZES)]
    transform = train_transform(SIDE, (30, 120))
    at_once = crops_of(DeviceCrops, transform, images, CPU)
    seen, cut = [], reference_crops._cut
    monkeypatch.setattr(reference_crops, "GROUP", 3 * 200 * 80)
    monkeypatch.setattr(
        reference_crops, "_cut", lambda cuts, *rest: seen.append(len(cuts)) or cut(cuts, *rest)
    )
    in_groups = crops_of(DeviceCrops, transform, images, CPU)
    assert sum(seen) == len(images)
    assert len(seen) > 2
    assert 1 in seen  # one image alone may be larger
    assert float(levels(in_groups, at_once).max()) < 1.01


def test_half_precision_around_does_not_reach_the_pixels():
    cuts = [Cut(torch.from_numpy(image((60, 80), 1)), draw_crop(train_transform(SIDE, (30, 60)), 60, 80))]
    plain = cut_crops(cuts, SIDE, IMAGENET_MEAN, IMAGENET_STD, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cut_crops(cuts, SIDE, IMAGENET_MEAN, IMAGENET_STD, CPU), plain)


def test_host_waits_for_no_device(monkeypatch):
    monkeypatch.setattr("torch.autocast", lambda *args, **kwargs: nullcontext())  # knows no such device
    images = [image(size, seed) for seed, size in enumerate(SIZES)]
    with HostWaits() as host:
        crops = crops_of(DeviceCrops, train_transform(SIDE, (30, 60)), images, torch.device("meta"))
    assert crops.shape == (len(images), 3, SIDE, SIDE)
    assert host.copies == len(images) + 1
    assert host.waits == 0


def test_other_transforms_stay_on_the_cpu(voc_tree):
    other = A.Compose(
        [*train_transform(SIDE).transforms[:-1], A.GaussNoise(), train_transform().transforms[-1]]
    )
    assert is_train_transform(train_transform(SIDE))
    for transform in (other, eval_transform(SIDE)):
        assert not is_train_transform(transform)
        with pytest.raises(ConfigError, match="steps of train_transform"):
            draw_crop(transform, 10, 10)
        data = VOCFolder(voc_tree, "train")
        sampler = ReferenceSampler(data.ids, data.labels)
        assert not ReferenceBatches(data, sampler, transform, on_device=True).on_device


def batches(voc_tree, threads, on_device):
    """Batches that are augmented on a device, for which the CPU stands in."""
    data = VOCFolder(voc_tree, "train")
    sampler = ReferenceSampler(data.ids, data.labels)
    references = ReferenceBatches(data, sampler, train_transform(SIDE, (10, 60)), 3, threads, on_device=True)
    if on_device:
        transforms = PerThread(references.transform)
        references._prepare = lambda labels: (labels, lambda rows: DeviceCrops(transforms, rows, CPU))
    return data, references


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_are_the_same_wherever_they_are_made(voc_tree, threads):
    data, references = batches(voc_tree, threads, on_device=True)
    _, plain = batches(voc_tree, 0, on_device=False)
    asked = data.ids[2], data.labels[2], 4
    pairs = zip(references(*asked), plain(*asked), strict=True)
    for (ours, labels), (theirs, same) in pairs:
        assert close(ours, theirs)
        assert torch.equal(labels, same)
    assert close(references.batch(*asked)[0], plain.batch(*asked)[0])
    assert list(references(data.ids[7], [1, 1, 1], 2)) == [(None, None)] * 2


@pytest.mark.parametrize("threads", [0, 2])
def test_a_broken_reference_is_named(voc_tree, threads):
    data, references = batches(voc_tree, threads, on_device=True)
    for path in (voc_tree / "JPEGImages").iterdir():
        path.write_text("broken")
    with pytest.raises(DataError, match="cannot be read as an image"):
        list(references(data.ids[2], data.labels[2], 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("threads", [0, 2])
def test_a_gpu_makes_the_batches_for_labels_that_lie_there(voc_tree, threads):
    data, references = batches(voc_tree, threads, on_device=False)
    labels = torch.from_numpy(data.labels[2])
    for (ours, _), (theirs, _) in zip(
        references(data.ids[2], labels.cuda(), 4), references(data.ids[2], labels, 4), strict=True
    ):
        assert ours.is_cuda
        assert close(ours.cpu(), theirs)
