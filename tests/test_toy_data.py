"""The toy data: exact and disjoint regions, the same for the same seed."""

import struct

import numpy as np
import pytest
import torch

from ribseg.data.demo.digits import (
    INK,
    SPLITS,
    Digits,
    ToyBatches,
    digits_fingerprint,
    read_digits,
    split_digits,
    toy_images,
)
from ribseg.errors import ConfigError, DatasetNotFoundError


@pytest.fixture(scope="module")
def digits():
    return read_digits()


@pytest.fixture(scope="module")
def toy(digits):
    return toy_images(split_digits(digits, "train"), 40, marked=0.25, seed=3)


def test_bundled_digits(digits):
    assert digits.images.shape == (351, 8, 8)
    assert (float(digits.images.min()), float(digits.images.max())) == (0, 1)
    assert digits.labels.bincount().tolist() == [177, 174]


def test_every_pixel_is_in_one_region(toy):
    assert (toy.regions.sum(1) == 1).all()
    assert toy.marked.tolist() == [True] * 10 + [False] * 30


def test_regions_are_exact(toy):
    digit, mark, rest = toy.regions.unbind(1)
    pixels = toy.images[:, 0]
    assert (pixels[mark] == 1).all()
    assert (pixels[digit] >= INK).all()
    assert (pixels[rest] < INK).all()
    assert digit.flatten(1).sum(1).min() > 100


def test_the_mark_tells_the_class(toy):
    for label, region in zip(toy.labels[:10].argmax(1), toy.regions[:10, 1], strict=True):
        rows, columns = region.any(1).nonzero().flatten(), region.any(0).nonzero().flatten()
        box = region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.shape[0] == box.shape[1]
        assert bool(box[0].all() & box[:, 0].all()) == (label == 1)  # a square has corners, a circle none
        assert box[0].any()
        middle = box.shape[0] // 2
        assert not box[middle - 1 : middle + 2, middle - 1 : middle + 2].any()  # outlines
        assert box[middle].sum() == 4  # two pixels wide


def test_mark_and_digit_keep_apart(toy):
    for digit, mark in toy.regions[:10, :2]:
        grown = torch.nn.functional.max_pool2d(mark[None, None].float(), 3, 1, 1)[0, 0] > 0
        overlap = int((grown & digit).sum())
        assert overlap == 0 or int((mark & digit).sum()) == 0


def test_both_classes_are_drawn_equally(toy):
    assert toy.labels.sum(0).tolist() == [20, 20]
    assert (toy.labels.sum(1) == 1).all()


def test_equal_seeds_give_equal_images(digits, toy):
    again = toy_images(split_digits(digits, "train"), 40, marked=0.25, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(toy, again, strict=True))
    # An image does not depend on how many there are.
    fewer = toy_images(split_digits(digits, "train"), 12, marked=10 / 12, seed=3)
    assert torch.equal(toy.images[:12].where(toy.marked[:12, None, None, None], 0), fewer.images.where(
        fewer.marked[:, None, None, None], 0))  # fmt: skip
    for change in ({"seed": 4}, {"name": "other"}):
        other = toy_images(split_digits(digits, "train"), 40, marked=0.25, **({"seed": 3} | change))
        assert not torch.equal(toy.images, other.images)


def test_splits_share_no_digit(digits):
    parts = [split_digits(digits, name).images.flatten(1) for name in SPLITS]
    assert sum(map(len, parts)) == len(digits.images)
    rows = [{tuple(row) for row in part.tolist()} for part in parts]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    with pytest.raises(ConfigError, match="split"):
        split_digits(digits, "trainval")
    with pytest.raises(ConfigError, match="2s and 8s"):
        split_digits(Digits(digits.images[:3], torch.zeros(3).long()), "val")


def test_batches(toy):
    plain = ToyBatches(toy, 16)
    assert len(plain) == 3
    assert torch.equal(torch.cat([batch.images for batch in plain]), toy.images)
    shuffled = ToyBatches(toy, 16, seed=0)
    passes = [torch.cat([batch.images for batch in shuffled]) for _ in range(2)]
    assert not torch.equal(*passes)
    assert torch.equal(passes[0].sum(0), passes[1].sum(0)) or torch.allclose(*(p.sum(0) for p in passes))
    again = torch.cat([batch.images for batch in ToyBatches(toy, 16, seed=0)])
    assert torch.equal(again, passes[0])


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_mnist_is_read_where_its_files_are(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="MNIST/raw"):
        read_digits(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("train", "t10k"):
        write_idx(tmp_path / f"MNIST/raw/{name}-images-idx3-ubyte", generator.integers(0, 256, (40, 28, 28)))
        write_idx(tmp_path / f"MNIST/raw/{name}-labels-idx1-ubyte", np.arange(40) % 10)
    digits = read_digits(tmp_path)
    assert digits.images.shape == (8, 28, 28)
    assert float(digits.images.max()) <= 1
    assert digits.labels.tolist() == [0, 1] * 4
    toy = toy_images(split_digits(digits, "train"), 4, marked=1.0)
    assert (toy.regions.sum(1) == 1).all()
    assert digits_fingerprint(digits) != digits_fingerprint(read_digits())
