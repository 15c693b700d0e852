"""Images with label maps: reading, and augmentation that moves both alike."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ribseg.data import VOCFolder
from ribseg.data.augment.segmentation import (
    SegmentationDataset,
    segmentation_eval_transform,
    segmentation_train_transform,
)
from ribseg.data.augment.transforms import seeded
from ribseg.errors import ConfigError, DataError

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def striped(height, width):
    """An image whose colour is its label: 50 per label, labels 1 to 4 in blocks of 16 pixels."""
    rows, columns = np.mgrid[:height, :width] // 16
    mask = (1 + (rows + columns) % 4).astype(np.uint8)
    return np.repeat(mask[..., None] * 50, 3, axis=2), mask


@pytest.mark.parametrize("size", [(96, 128), (20, 200), (40, 30), (1, 5)])
def test_image_and_mask_stay_together(size):
    image, mask = striped(*size)
    transform = segmentation_train_transform(64, **PLAIN)
    for seed in range(20):
        sample = seeded(transform, seed)(image=image, mask=mask)
        assert sample["image"].shape == (3, 64, 64)
        assert sample["image"].dtype == torch.float32
        assert sample["mask"].shape == (64, 64)
        assert sample["mask"].dtype == torch.uint8
        ids = set(sample["mask"].unique().tolist())
        assert ids <= {1, 2, 3, 4, 255}, "labels were mixed"
        outside = sample["mask"] == 255
        assert (sample["image"][:, outside] == 0).all(), "the padding differs between image and mask"
        # The bicubic filter blurs the colours only beside an edge between two labels.
        label = (sample["image"][0] * 255 / 50).round()
        if min(size) > 16:
            assert (label == sample["mask"])[~outside].float().mean() > 0.7


def test_scale_is_uniform_over_its_range():
    image, mask = striped(100, 100)
    transform = segmentation_train_transform(200, scale=(0.5, 1.5))
    sides = []
    for seed in range(200):
        inside = seeded(transform, seed)(image=image, mask=mask)["mask"] != 255
        sides.append(int(inside.any(0).sum()))
    assert 50 <= min(sides) <= 55
    assert 145 <= max(sides) <= 150
    assert 94 < np.mean(sides) < 106


def test_scale_one_changes_no_pixel():
    image, mask = striped(32, 32)
    sample = segmentation_train_transform(32, scale=(1, 1), flip=0, **PLAIN)(image=image, mask=mask)
    assert (sample["mask"].numpy() == mask).all()
    np.testing.assert_allclose(sample["image"].permute(1, 2, 0).numpy() * 255, image, atol=1e-4)


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (64, 64)])
def test_eval_transform_takes_the_top_left(size):
    image, mask = striped(*size)
    sample = segmentation_eval_transform(64, **PLAIN)(image=image, mask=mask)
    height, width = min(size[0], 64), min(size[1], 64)
    assert (sample["mask"][:height, :width].numpy() == mask[:height, :width]).all()
    assert (sample["mask"][height:] == 255).all()
    assert (sample["mask"][:, width:] == 255).all()
    assert sample["image"].shape == (3, 64, 64)


def test_reads_a_tree(voc_tree):
    folder = VOCFolder(voc_tree, "train")
    dataset = SegmentationDataset(folder.ids, folder.image, folder.mask, segmentation_train_transform(48))
    assert len(dataset) == len(folder.ids)
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    assert list(batch.id) == folder.ids[:4]
    assert batch.image.shape == (4, 3, 48, 48)
    assert batch.mask.shape == (4, 48, 48)
    raw = SegmentationDataset(folder.ids, folder.image, folder.mask)[1]
    assert raw.image.shape[:2] == raw.mask.shape == (50, 37)


def test_mask_of_another_size(voc_tree):
    folder = VOCFolder(voc_tree, "train")
    dataset = SegmentationDataset(folder.ids, folder.image, lambda _: np.zeros((5, 6), np.uint8))
    with pytest.raises(DataError, match=rf"mask of {folder.ids[0]} is of size \(5, 6\)"):
        dataset[0]


@pytest.mark.parametrize("settings", [{"scale": (0, 1)}, {"scale": (2, 1)}, {"flip": 2}, {"crop_size": 0}])
def test_settings_that_cannot_work(settings):
    with pytest.raises(ConfigError, match="expected"):
        segmentation_train_transform(**settings)
