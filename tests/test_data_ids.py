"""Lists of very many images: how fast they open, what a worker's copy of them costs."""

import gc
import json
import os
import sys
import time
from pathlib import Path

import pytest

from ribseg import files
from ribseg.data import voc
from ribseg.data.feed.sampler import ReferenceSampler
from ribseg.data.feed.views import ViewsDataset
from ribseg.data.voc import VOCFolder

MANY = 120_000  # images of COCO 2014
SMAPS = Path("/proc/self/smaps_rollup")


def fabricated(root, number):
    """The text files of a data set of many images with COCO's names; there are no images."""
    names = [f"COCO_train2014_{place:012d}" for place in range(number)]
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(f"class{place}" for place in range(80)))
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names))
    rows = (f"{name},class{place % 80} class{place % 7}" for place, name in enumerate(names))
    (root / "image_labels.csv").write_text("\n".join(["image,classes", *rows]))
    return names


@pytest.fixture
def listing(monkeypatch):
    """Lets folders list files that are not there."""

    def pretend(names):
        def scan(folder, endings):
            if endings == (".txt",):
                return files.scan_folder(folder, endings)
            return {sys.intern(str(bytes(name, "ascii"), "ascii")): name + endings[0] for name in names}

        monkeypatch.setattr(voc, "scan_folder", scan)

    return pretend


def opened(root, names):
    """Everything that the loading of images builds, and a look-up of each image; CPU seconds."""
    start = time.process_time()
    data = VOCFolder(root, "train")
    views = ViewsDataset(dict.fromkeys(data.ids, data), data.ids)
    sampler = ReferenceSampler(data.ids, data.labels)
    for row, name in enumerate(names):
        assert data.index(name) == row
        assert data.has_image(name)
    for name in names[:: len(names) // 20]:
        assert len(sampler.indices(name, data.labels[data.index(name)], 0, 20)) == 20
    assert len(views) == len(data.without(names[::2])) * 2 == len(names)
    return time.process_time() - start


def test_the_time_grows_with_the_number_of_images_not_with_its_square(tmp_path, listing):
    seconds = {}
    for number in (20_000, 100_000):
        names = fabricated(tmp_path / str(number), number)
        listing(names)
        seconds[number] = opened(tmp_path / str(number), names)
    # Five times as many: about 5, by the square 25. On one core 100,000 take less than two seconds.
    assert seconds[100_000] < 12 * seconds[20_000]
    assert seconds[100_000] < 20


def growth(touch):
    """Bytes that become a forked process's own while it calls a function."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        gc.disable()  # a collection writes into every container of the test's process
        before = private_bytes()
        touch()
        os.write(write, json.dumps(private_bytes() - before).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        result = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(result)


def private_bytes():
    line = next(line for line in SMAPS.read_text().splitlines() if line.startswith("Private_Dirty"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not SMAPS.is_file(), reason="needs Linux's smaps_rollup")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_worker_copies_few_bytes_of_the_list(tmp_path, listing, monkeypatch):
    names = fabricated(tmp_path, MANY)
    listing(names)
    monkeypatch.setattr(voc, "read_image", lambda path: path)
    data = VOCFolder(tmp_path, "train")
    views = ViewsDataset(dict.fromkeys(data.ids, data), data.ids)
    data.index(data.ids[0])

    def touch():
        for name in views.ids:
            folder = views.folders[name]
            assert name in str(folder.image(name))
            assert folder.has_mask(name)
            folder.labels[folder.index(name)]

    # 27 MB when this was written, half of one image's views (640 x 480 at four scales: 53 MB).
    assert growth(touch) < 40 * 2**20
