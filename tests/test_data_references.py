"""Reference images share no class with the image and depend on (seed, image id, step) alone."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch

from ribseg import seeds
from ribseg.data.augment.transforms import train_transform
from ribseg.data.feed.references import ReferenceBatches
from ribseg.data.feed.sampler import ReferenceSampler
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError, DataError
from ribseg.seeds import rng


@pytest.fixture
def labels():
    matrix = np.random.default_rng(0).random((100, 5)) < 0.25
    matrix[7] = False  # one image without labels
    return matrix


@pytest.fixture
def sampler(labels):
    return ReferenceSampler([f"i{number}" for number in range(100)], labels, seed=3)


def test_rng_is_the_same_in_another_process():
    # The file alone: the package would load torch.
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['rng'](5, 'a', 1).integers(2**62))"
    command = [sys.executable, "-c", code, seeds.__file__]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(other) == rng(5, "a", 1).integers(2**62)


def test_rng_tells_keys_apart():
    keys = [(0, "a", 1), (0, "a", "1"), (0, "a1"), (0, "a", 1, 0), (1, "a", 1), (0, "b", 1), (0, 'a", 1')]
    assert len({int(rng(*key).integers(2**62)) for key in keys}) == len(keys)
    assert rng(np.int64(0), "a", np.int32(1)).integers(99) == rng(0, "a", 1).integers(99)


def test_pool_shares_no_class_and_leaves_itself_out(sampler, labels):
    for index in range(100):
        pool = sampler.candidates(f"i{index}", labels[index])
        expected = [j for j in range(100) if j != index and not (labels[j] & labels[index]).any()]
        assert pool.tolist() == expected
    assert len(sampler.candidates("i7", labels[7])) == 99  # without labels nothing is shared
    assert 7 in sampler.candidates("i0", labels[0])


def test_steps_deal_out_a_permutation(sampler, labels):
    pool = sampler.candidates("i0", labels[0])
    count = len(pool) // 3
    dealt = np.concatenate([sampler.indices("i0", labels[0], step, count) for step in range(3)])
    assert len(set(dealt)) == len(dealt) == 3 * count
    assert set(dealt) <= set(pool)
    assert dealt.dtype == np.int64


def test_used_up_pool_is_shuffled_anew(labels):
    few = ReferenceSampler([f"i{number}" for number in range(8)], np.eye(8, dtype=bool))
    stream = np.concatenate([few.indices("i0", np.eye(8)[0], step, 4) for step in range(7)])
    rounds = stream.reshape(4, 7)
    assert all(sorted(row) == list(range(1, 8)) for row in rounds.tolist())
    assert len({tuple(row) for row in rounds.tolist()}) > 1
    assert few.indices("i0", np.eye(8)[0], 0, 20)[:7].tolist() == rounds[0].tolist()


def test_function_of_seed_image_and_step(sampler, labels):
    first = sampler.indices("i0", labels[0], 4, 6)
    sampler.indices("i9", labels[9], 0, 6)
    assert sampler.indices("i0", torch.from_numpy(labels[0]).float(), 4, 6).tolist() == first.tolist()
    again = ReferenceSampler(sampler.ids, labels, seed=3)
    assert again.indices("i0", labels[0], 4, 6).tolist() == first.tolist()
    others = [
        ReferenceSampler(sampler.ids, labels, seed=4).indices("i0", labels[0], 4, 6),
        sampler.indices("i0", labels[0], 5, 6),
        sampler.indices("someone", labels[0], 4, 6),
    ]
    assert all(other.tolist() != first.tolist() for other in others)


def test_empty_pool(sampler):
    everything = ReferenceSampler(["a", "b"], np.ones((2, 3), bool))
    assert everything.indices("a", np.ones(3), 0, 4).shape == (0,)


def test_wrong_shapes(sampler):
    with pytest.raises(DataError, match=r"labels \(5,\) of i0, found \(4,\)"):
        sampler.candidates("i0", np.ones(4))
    with pytest.raises(DataError, match=r"labels \(2, C\)"):
        ReferenceSampler(["a", "b"], np.ones((3, 4)))


def batches(voc_tree, seed=0, threads=0, batch_size=3):
    data = VOCFolder(voc_tree, "train")
    sampler = ReferenceSampler(data.ids, data.labels, seed)
    return data, ReferenceBatches(data, sampler, train_transform(16, (10, 30)), batch_size, threads)


def test_batches(voc_tree):
    data, references = batches(voc_tree)
    steps = list(references(data.ids[2], data.labels[2], 4))
    assert len(steps) == 4
    for images, labels in steps:
        assert images.shape == (3, 3, 16, 16)
        assert images.dtype == labels.dtype == torch.float32
        assert labels.shape == (3, 3)
        assert (labels[:, data.labels[2]] == 0).all()


def test_batches_do_not_depend_on_order_or_threads(voc_tree):
    data, references = batches(voc_tree)
    steps = list(references(data.ids[2], data.labels[2], 4))
    _, threaded = batches(voc_tree, threads=3)
    list(threaded(data.ids[0], data.labels[0], 2))
    for (images, labels), (again, same) in zip(steps, threaded(data.ids[2], data.labels[2], 4), strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
    assert torch.equal(steps[3][0], references.batch(data.ids[2], data.labels[2], 3)[0])
    assert not torch.equal(steps[0][0], batches(voc_tree, seed=1)[1].batch(data.ids[2], data.labels[2], 0)[0])


def test_rows_of_one_image_are_augmented_differently(voc_tree):
    data, references = batches(voc_tree, batch_size=12)
    images, _ = references.batch(data.ids[0], [0, 0, 1], 0)
    assert len({image.numpy().tobytes() for image in images}) == 12


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_are_lazy(voc_tree, threads):
    data, references = batches(voc_tree, threads=threads)
    endless = references(data.ids[2], data.labels[2], 10**9)
    assert len(list(islice(endless, 2))) == 2
    endless.close()
    assert list(references(data.ids[2], data.labels[2], 0)) == []


def test_threads_begin_at_once_and_are_as_many_as_asked_for(voc_tree):
    data, references = batches(voc_tree, threads=2)
    seen, image = [], data.image

    def spy(image_id):
        seen.append(threading.current_thread())
        return image(image_id)

    data.image = spy
    first = references(data.ids[2], data.labels[2], 3)
    while len(seen) < references.batch_size:  # nobody has asked for a batch yet
        time.sleep(0.001)
    assert len(list(first)) == 3
    assert len(seen) == 3 * references.batch_size
    assert len(set(seen)) <= 2
    assert threading.current_thread() not in seen


def test_threads_end_with_their_image(voc_tree):
    data, references = batches(voc_tree, threads=2)
    for row in (0, 1, 3):
        next(references(data.ids[row], data.labels[row], 2))
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("references") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("way", ["closed", "dropped"])
def test_batches_that_nobody_takes_are_given_up(voc_tree, way):
    data, references = batches(voc_tree, threads=1, batch_size=50)
    seen, image = [], data.image
    begun, go_on = threading.Event(), threading.Event()

    def held(image_id):
        seen.append(image_id)
        begun.set()
        assert go_on.wait(10)
        return image(image_id)

    data.image = held
    dropped = references(data.ids[2], data.labels[2], 3)
    assert begun.wait(10)
    if way == "closed":
        dropped.close()
        assert list(dropped) == []
    del dropped
    go_on.set()
    taken = next(references(data.ids[0], data.labels[0], 1))
    assert len(seen) == 1 + 50  # one was under way
    assert torch.equal(taken[0], references.batch(data.ids[0], data.labels[0], 0)[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_makes_its_own_threads(voc_tree):
    data, references = batches(voc_tree, threads=2)
    expected = list(references(data.ids[2], data.labels[2], 2))
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        found = list(references(data.ids[2], data.labels[2], 2))
        same = all(torch.equal(a[0], b[0]) for a, b in zip(expected, found, strict=True))
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_another_process_makes_its_own_threads(voc_tree):
    data, references = batches(voc_tree, threads=2)
    expected = list(references(data.ids[2], data.labels[2], 2))
    again = pickle.loads(pickle.dumps(references))  # noqa: S301
    for (images, _), (same, _) in zip(expected, again(data.ids[2], data.labels[2], 2), strict=True):
        assert torch.equal(images, same)


@pytest.mark.parametrize("threads", [0, 2])
def test_no_disjoint_image(voc_tree, threads):
    data, references = batches(voc_tree, threads=threads)
    assert list(references(data.ids[7], [1, 1, 1], 2)) == [(None, None)] * 2


@pytest.mark.parametrize("threads", [0, 2])
def test_broken_reference_is_named(voc_tree, threads):
    data, references = batches(voc_tree, threads=threads)
    for path in (voc_tree / "JPEGImages").iterdir():
        path.write_text("broken")
    with pytest.raises(DataError, match="cannot be read as an image"):
        list(references(data.ids[2], data.labels[2], 2))


@pytest.mark.parametrize(("size", "threads"), [(0, 0), (3, -1)])
def test_wrong_settings(voc_tree, size, threads):
    with pytest.raises(ConfigError, match="batch_size >= 1"):
        batches(voc_tree, threads=threads, batch_size=size)
