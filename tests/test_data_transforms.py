"""The training augmentation has the published numbers, and its random streams are independent."""

import numpy as np
import pytest
import torch

from ribseg.data.augment.transforms import eval_transform, seeded, train_transform
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD, rescale
from ribseg.errors import ConfigError


def normalised(image):
    return (image / 255 - IMAGENET_MEAN) / IMAGENET_STD


def content_box(tensor):
    """Rows and columns (first, last + 1) of a (3, S, S) tensor that are not padding."""
    filled = (tensor != 0).any(0)
    rows, columns = filled.any(1).nonzero().ravel(), filled.any(0).nonzero().ravel()
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def test_defaults_are_the_published_numbers():
    longest, flip, normalise, pad, crop, _ = train_transform().transforms
    assert (min(longest.max_size), max(longest.max_size), len(longest.max_size)) == (320, 640, 321)
    assert flip.p == 0.5
    assert (tuple(normalise.mean), tuple(normalise.std)) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (pad.min_height, pad.min_width, pad.position, pad.fill) == (512, 512, "random", 0)
    assert (crop.height, crop.width) == (512, 512)


def test_long_edge_is_uniform_over_the_closed_range():
    transform = train_transform(crop_size=64, resize_long=(32, 36), flip=0)
    image = np.full((20, 40, 3), 255, np.uint8)
    lengths = []
    for seed in range(1000):
        top, bottom, left, right = content_box(seeded(transform, seed)(image=image)["image"])
        lengths.append(right - left)
        assert bottom - top == round((right - left) / 2)
    counts = np.bincount(lengths, minlength=37)[32:]
    assert counts.sum() == 1000
    assert ((counts > 150) & (counts < 250)).all(), counts  # 200 +- 4 sigma


def test_small_images_stand_anywhere_on_the_mean_colour():
    transform = train_transform(crop_size=16, resize_long=(12, 12), flip=0)
    image = np.full((12, 12, 3), 255, np.uint8)
    outputs = [seeded(transform, seed)(image=image)["image"] for seed in range(300)]
    corners = {(content_box(output)[0], content_box(output)[2]) for output in outputs}
    assert corners == {(row, column) for row in range(5) for column in range(5)}
    assert all((output == 0).sum() == 3 * (16 * 16 - 12 * 12) for output in outputs)
    assert outputs[0].shape == (3, 16, 16)
    assert outputs[0].dtype == torch.float32


def test_large_images_are_cut_anywhere():
    transform = train_transform(crop_size=8, resize_long=(12, 12), flip=0)
    image = np.arange(12 * 12, dtype=np.uint8).reshape(12, 12, 1).repeat(3, 2)
    expected = normalised(image).transpose(2, 0, 1)
    corners = set()
    for seed in range(300):
        output = seeded(transform, seed)(image=image)["image"].numpy()
        first = round((output[0, 0, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255)
        row, column = divmod(first, 12)
        corners.add((row, column))
        np.testing.assert_allclose(output, expected[:, row : row + 8, column : column + 8], atol=1e-5)
    assert corners == {(row, column) for row in range(5) for column in range(5)}


def test_half_of_the_images_are_mirrored_whatever_their_size():
    transform = train_transform(crop_size=40, resize_long=(20, 39))
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, :10] = 255
    mirrored, lengths, tops = [], [], []
    for seed in range(1000):
        output = seeded(transform, seed)(image=image)["image"]
        top, _, left, right = content_box(output)
        mirrored.append(bool(output[0, top, left] < 0))
        lengths.append(right - left)
        tops.append(top / (40 - (right - left)))
    assert 440 < sum(mirrored) < 560
    for other in (lengths, tops):  # each step has a stream of its own
        assert abs(np.corrcoef(mirrored, other)[0, 1]) < 0.13
    assert abs(np.corrcoef(lengths, tops)[0, 1]) < 0.13


def test_resize_is_pillows_bicubic():
    image = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)
    output = train_transform(crop_size=60, resize_long=(60, 60), flip=0)(image=image)["image"]
    top, bottom, _, _ = content_box(output)
    expected = normalised(rescale(image, 60 / 90)).transpose(2, 0, 1)
    np.testing.assert_allclose(output[:, top:bottom].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (700, 500), (2, 5000)])
def test_any_shape_gives_the_crop(size):
    image = np.zeros((*size, 3), np.uint8)
    assert train_transform(crop_size=96)(image=image)["image"].shape == (3, 96, 96)
    assert eval_transform(crop_size=96)(image=image)["image"].shape == (3, 96, 96)


def test_eval_transform_stands_top_left_whole():
    image = np.full((30, 60, 3), 255, np.uint8)
    output = eval_transform(crop_size=64, resize_long=40)(image=image)["image"]
    assert content_box(output) == (0, 20, 0, 40)
    assert content_box(eval_transform(crop_size=32, resize_long=40)(image=image)["image"]) == (0, 16, 0, 32)
    torch.testing.assert_close(output, eval_transform(crop_size=64, resize_long=40)(image=image)["image"])


@pytest.mark.parametrize(
    "wrong",
    [{"crop_size": 0}, {"resize_long": (640, 320)}, {"resize_long": (0, 5)}, {"flip": 1.5}],
)
def test_wrong_settings(wrong):
    with pytest.raises(ConfigError, match="expected"):
        train_transform(**wrong)


def test_same_seed_same_output():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    one, two = train_transform(64, (40, 90)), train_transform(64, (40, 90))
    one(image=image)  # what went before does not matter
    first = seeded(one, 7)(image=image)["image"]
    assert torch.equal(first, seeded(two, 7)(image=image)["image"])
    assert not torch.equal(first, seeded(two, 8)(image=image)["image"])
