"""Fixtures for all tests."""

import os
import shutil
import sys
from copy import deepcopy
from pathlib import Path

# Before anything imports albumentations, which would ask a server for its newest version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import pytest
import torch

# Small tensors gain nothing from threads, and threads that wait for a busy core cost a lot.
torch.set_num_threads(1)

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent / "data"))

from make_trees import make_voc_tree  # noqa: E402

from ribseg import workers  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def files_of_conf_are_read_once():
    """Keeps what Hydra reads from conf/, which takes half of the time of composing a configuration."""
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins

    Plugins.instance()  # fills the registry
    reader = SourcesRegistry.instance().resolve("file")
    conf, read, kept = str(REPOSITORY / "conf"), reader.load_config, {}

    def load_config(source, config_path):
        if source.path != conf:
            return read(source, config_path)
        if config_path not in kept:
            kept[config_path] = read(source, config_path)
        return deepcopy(kept[config_path])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "load_config", load_config)
        yield


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """One core for each test, as they run beside one another, whatever earlier commands have said."""
    monkeypatch.setattr(workers, "_jobs", os.cpu_count() or 1)


@pytest.fixture
def voc_tree(tmp_path):
    """A fresh tree of 12 tiny images in VOC layout; see make_trees.py. Tests may damage it."""
    return make_voc_tree(tmp_path / "tree")


@pytest.fixture
def tree(tmp_path):
    """A fresh tree of 10 images that a network can learn; see quick_run.py."""
    from quick_run import make_learnable_tree

    return make_learnable_tree(tmp_path / "tree")


@pytest.fixture
def saliency(tmp_path, tree):
    """Saliency maps that are right about the objects of all images of `tree`."""
    import numpy as np
    from PIL import Image

    from ribseg.data.io.masks import read_mask

    folder = tmp_path / "saliency"
    folder.mkdir()
    for path in (tree / "SegmentationClass").iterdir():
        Image.fromarray((read_mask(path) > 0).astype(np.uint8) * 255).save(folder / path.name)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The store of a quick run of all stages over what `tree` gives; see `stored`."""
    from quick_run import LIGHT, SHORT, folder_run, make_learnable_tree

    folder = tmp_path_factory.mktemp("finished")
    tree = make_learnable_tree(folder / "tree")
    folder_run(folder, tree, SHORT)
    folder_run(folder, tree, *LIGHT)
    return folder / "store"


@pytest.fixture
def stored(finished, tmp_path):
    """Fills the test's store: `folder_run` takes from it what it would compute with the same settings."""
    shutil.copytree(finished, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without the drawing of their figures, which takes most of the time: the list of these.

    Others look at figures.
    """
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    figures = []

    def png_of(figure, dpi=80):
        figures.append(figure)
        return buffer.getvalue()

    for place in ("figures", "pictures"):
        monkeypatch.setattr(f"ribseg.pipeline.report.{place}.png_of", png_of)
    monkeypatch.setattr("ribseg.pipeline.report.figures.svg_of", lambda figure, title: "<svg></svg>")
    return figures


@pytest.fixture
def wandb_alone(tmp_path):
    """W&B without the credentials and settings of whoever runs the tests, and afterwards as before."""
    from quick_run import without_wandb_settings

    with without_wandb_settings(tmp_path):
        yield


@pytest.fixture(scope="session")
def real_data():
    """Folder of the real photographs (msrc_v2/, VOCdevkit/); skips where it is absent."""
    folder = Path(os.environ.get("RIBSEG_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "msrc_v2").is_dir():
        pytest.skip(
            f"no real data at {folder}; set RIBSEG_DATA to the folder that holds msrc_v2/ and VOCdevkit/"
        )
    return folder
