"""The pool of decoded images, and reference batches from it."""

import errno
import os
import time

import numpy as np
import pytest
import torch
from quick_run import folder_run, make_learnable_tree

from ribseg.data.augment.transforms import train_transform
from ribseg.data.feed.image_pool import PIXELS, ImagePool, build_pool, image_sizes, pool_bytes
from ribseg.data.feed.references import ReferenceBatches
from ribseg.data.feed.sampler import ReferenceSampler
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError, DataError, RibsegError


@pytest.fixture
def dataset(tree):
    return VOCFolder(tree, "train")


def test_a_pool_holds_the_images_as_they_are_read(dataset, tmp_path):
    sizes = image_sizes(dataset)
    pool = build_pool(tmp_path / "pool", dataset, sizes, threads=2)
    assert len(pool) == len(dataset)
    for number, image_id in enumerate(dataset.ids):
        np.testing.assert_array_equal(pool[number], dataset.image(image_id))
        assert not pool[number].flags.writeable
    assert sorted(path.name for path in pool.folder.iterdir()) == ["index.npz", PIXELS]
    assert (tmp_path / "pool" / PIXELS).stat().st_size == pool_bytes(sizes)
    np.testing.assert_array_equal(ImagePool(tmp_path / "pool")[1], pool[1])


@pytest.mark.parametrize("threads", [0, 3])
def test_batches_from_a_pool_are_the_same(dataset, tmp_path, threads):
    pool = build_pool(tmp_path / "pool", dataset, image_sizes(dataset))
    sampler = ReferenceSampler(dataset.ids, dataset.labels, seed=3)
    transform = train_transform(32, (20, 40))
    decoded = ReferenceBatches(dataset, sampler, transform, 3, threads, pool)
    fresh = ReferenceBatches(dataset, sampler, transform, 3, 0)
    image_id, labels = dataset.ids[0], dataset.labels[0]
    pairs = list(zip(decoded(image_id, labels, 3), fresh(image_id, labels, 3), strict=True))
    assert pairs[0][0][0] is not None
    for ours, theirs in pairs:
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_a_pool_of_other_images_is_refused(dataset, tmp_path):
    pool = build_pool(tmp_path / "pool", dataset.without(dataset.ids[:1]), image_sizes(dataset)[1:])
    sampler = ReferenceSampler(dataset.ids, dataset.labels)
    with pytest.raises(ConfigError, match=f"pool of {len(dataset)} images"):
        ReferenceBatches(dataset, sampler, train_transform(32), 3, pool=pool)


def test_a_torn_or_absent_pool_is_named(dataset, tmp_path):
    with pytest.raises(DataError, match="no pool"):
        ImagePool(tmp_path)
    pool = build_pool(tmp_path / "pool", dataset, image_sizes(dataset))
    pixels = pool.folder / PIXELS
    pixels.write_bytes(pixels.read_bytes()[:-1])
    with pytest.raises(DataError, match="delete it"):
        ImagePool(pool.folder)
    pixels.write_bytes(b"")
    with pytest.raises(DataError, match="delete it"):
        ImagePool(pool.folder)


def test_a_full_disk_leaves_nothing_and_says_what_to_do(dataset, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ribseg.data.feed.image_pool.track", full)
    with pytest.raises(RibsegError, match=r"No space.*maps.pool_gib=0"):
        build_pool(tmp_path / "pool", dataset, image_sizes(dataset))
    assert list((tmp_path / "pool").iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed(dataset, tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    for name, age in (("old", 3600), ("new", 1)):
        path = folder / f".{PIXELS}.{name}.tmp"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    build_pool(folder, dataset, image_sizes(dataset))
    assert {path.name for path in folder.iterdir()} == {f".{PIXELS}.new.tmp", "index.npz", PIXELS}


def test_an_image_that_changed_is_named(dataset, tmp_path):
    sizes = image_sizes(dataset)
    sizes[2, 0] += 1
    with pytest.raises(DataError, match=dataset.ids[2]):
        build_pool(tmp_path / "pool", dataset, sizes)
    with pytest.raises(DataError, match="no pool"):
        ImagePool(tmp_path / "pool")


def test_references_that_cannot_count_are_not_loaded(tmp_path, capsys):
    root = make_learnable_tree(tmp_path / "data")
    settings = ("run=[classifier,rib]", "rib.references=2", "rib.trainable=head")
    folder_run(tmp_path / "a", root, *settings)
    assert "no reference images are loaded" in capsys.readouterr().out
    assert not list((tmp_path / "a").rglob(PIXELS))


def test_a_run_draws_from_a_pool_or_says_why_not(tmp_path, capsys):
    root = make_learnable_tree(tmp_path / "data")
    stages = ("run=[classifier,rib]", "rib.references=2", "rib.trainable=layer4")
    with_pool = folder_run(tmp_path / "a", root, *stages)
    assert "decoded training images" in capsys.readouterr().out
    (pool,) = (tmp_path / "a").rglob(f"pool-*/{PIXELS}")
    assert pool.stat().st_size > 0
    without = folder_run(tmp_path / "b", root, *stages, "maps.pool_gib=1e-9")
    assert "decoding at each draw" in capsys.readouterr().out
    assert not list((tmp_path / "b").rglob(PIXELS))
    assert with_pool["adaptation"]["steps_mean"] == without["adaptation"]["steps_mean"]
    ours, theirs = (sorted((tmp_path / run).rglob("rib-*/maps/*.npz")) for run in "ab")
    assert ours
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]
