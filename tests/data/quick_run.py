"""A data set and settings with which the whole chain runs in seconds, and `train.py` in this process."""

import logging
import runpy
import signal
import sys
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from ribseg.data.io.masks import write_mask
from ribseg.pipeline.plan import KINDS, selected, stages_of
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.run import begin, run

TRAIN = Path(__file__).parents[2] / "train.py"
CONF = TRAIN.parent / "conf"

# Everything that makes a dry run quick; the structure of the experiment stays.
QUICK = [
    "classifier.epochs=1",
    "classifier.model.backbone=resnet10t",
    "classifier.model.pretrained=false",
    "classifier.model.weights=null",
    "classifier.model.backbone_kwargs={channels:[8,8,12,16]}",
    "data.crop_size=32",
    "data.resize_long=[24,48]",
    "data.batch_size=4",
    "data.num_workers=0",
    "data.scales=[1.0,0.5]",
    "rib.loss_views=[0]",
    "rib.steps=2",
    "rib.area_limit=null",  # the maps of an untrained network may cover anything
    "rib.margin=1e6",
    "rate_search.images=1",
    "rate_search.low=1e-5",
    "rate_search.high=1e-4",
    "rate_search.growth=null",
    "evaluate.bootstrap=10",
    "evaluate.thresholds=11",
    "report.examples=2",
    "progress=false",
    "affinity.epochs=1",
    "affinity.batch_size=4",
    "affinity.crop_size=32",
    "affinity.module.radius=3",
    "affinity.backbone.weights=classifier",
    "affinity.backbone.pretrained=false",
    "refine.walk.steps=4",
    "refine.crf.iterations=2",
    "refine.crf.backend=torch",
    "refine.variants=[none,crf,pixel_adaptive,random_walk,random_walk_crf]",
    "segmenter.max_steps=4",
    "segmenter.check_every=2",
    "segmenter.batch_size=4",
    "segmenter.crop_size=33",
    "segmenter.test.scales=[0.5,1.0]",
    "segmenter.test.crf={iterations:2,backend:torch}",
    "segmenter.test.tile=40",
    "trainer.accelerator=cpu",
    "bottleneck.seeds=2",
    "bottleneck.images.train=12",
    "bottleneck.images.measured=3",
    "bottleneck.images.scored=6",
    "bottleneck.training.epochs=1",
    "bottleneck.training.batch_size=6",
    "bottleneck.rib.steps=2",
    "bottleneck.examples=2",
]

LITE = {"rib_folder", "rib_voc_lite"}  # experiments whose segmenter is one over the classifier's backbone
DEEPLAB = [  # for the others
    "segmenter.model.backbone=resnet10t",
    "segmenter.model.pretrained=false",
    "segmenter.model.weights=null",
    "segmenter.model.backbone_kwargs={channels:[8,8,12,16]}",
    "segmenter.model.dilations=[1,2]",
]

# The report takes longer than all of them.
SHORT = "run=[classifier,cam,rib,controls,evaluate]"
LIGHT = ("refine.variants=[none]", "run=[classifier,rib,pseudo_masks,segmenter]", "segmenter.sources=[rib]")


def settings(experiment, tmp_path, *overrides):
    """The composed configuration of a quick run with its store in tmp_path."""
    words = [f"store.root={tmp_path / 'store'}", *overrides]
    quick = QUICK if experiment in LITE else [*QUICK, *DEEPLAB]
    return composed(words, (f"experiment={experiment}", *quick))


def composed(words, first=()):
    """The configuration of a command line: `first` and `words`.

    Hydra chooses the files first and sets single values afterwards; what the files and `first` give is kept.
    """
    parsed = OverridesParser.create().parse_overrides(words)
    values = [each for each in parsed if not _chooses_files(each)]
    cfg = deepcopy(_chosen(*first, *(each.input_line for each in parsed if _chooses_files(each))))
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    return cfg


def _chooses_files(override):
    return override.is_hydra_override() or (CONF / override.key_or_group).is_dir()


@lru_cache(maxsize=128)
def _chosen(*words):
    """What Hydra composes; not to be changed."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(words))


def begun(cfg, output):
    """A session whose run has its stages, before the checks."""
    session = Session(cfg, Path(output), KINDS)
    begin(session)
    return session


def chosen(cfg, output, names):
    """The stages that names in `run` stand for."""
    session = Session(cfg, Path(output), KINDS)
    return selected(session, stages_of(session), names)


def folder_run(tmp_path, tree, *overrides, output="out"):
    """Runs `rib_folder` quickly and returns its results."""
    cfg = settings("rib_folder", tmp_path, f"data.root={tree}", SHORT, *overrides)
    return run(cfg, tmp_path / output)


def arguments(folder, tree, *overrides):
    """A command line of `train.py`: a quick run or sweep over a folder of images."""
    places = [f"data.root={tree}", f"store.root={folder / 'store'}", f"hydra.run.dir={folder / 'run'}"]
    sweep = f"hydra.sweep.dir={folder / 'sweep'}"
    return [str(TRAIN), "experiment=rib_folder", *QUICK, *places, sweep, *overrides]


def train(command_line):
    """Runs `train.py` in this process and returns what it exits with: None, a number, or a message.

    A process of its own, which takes seconds to start, is for tests that kill it or need two.
    """
    GlobalHydra.instance().clear()
    with as_before():
        sys.argv = command_line
        try:
            runpy.run_path(str(TRAIN), run_name="__main__")
        except SystemExit as stop:
            return stop.code
    return None


@contextmanager
def as_before():
    """Gives arguments, loggers and the answer to Ctrl-C back, which Hydra and Lightning set."""
    arguments, root, interrupt = sys.argv, logging.getLogger(), signal.getsignal(signal.SIGINT)
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        sys.argv, root.handlers[:] = arguments, handlers
        root.setLevel(level)
        signal.signal(signal.SIGINT, interrupt)


@contextmanager
def without_wandb_settings(folder):
    """W&B without the credentials and settings of whoever runs the tests, and afterwards as before."""
    from ribseg.pipeline.recipe.loggers import wandb_login

    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
            patch.setenv(name, "")  # so that what Lightning sets is taken back, too
            patch.delenv(name)
        patch.setenv("NETRC", str(folder / "no_netrc"))
        wandb_login.cache_clear()
        yield
    wandb_login.cache_clear()


def make_learnable_tree(root, number=10):
    """Images of two classes, dark squares on noise, in VOC layout; split trainaug equals train."""
    generator = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    ids = [f"im_{index:02d}" for index in range(number)]
    rows = ["image,classes"]
    for index, name in enumerate(ids):
        height, width = int(generator.integers(24, 48)), int(generator.integers(24, 48))
        image = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), np.uint8)
        mask[4:20, 4:20] = index % 2 + 1
        mask[4, 4] = 255
        image[4:20, 4:20] //= 3
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg")
        write_mask(root / "SegmentationClass" / f"{name}.png", mask)
        rows.append(f"{name},{'a' if index % 2 == 0 else 'b'}")
    (root / "image_labels.csv").write_text("\n".join(rows))
    (root / "classes.txt").write_text("a\nb\n")
    for split, chosen in {
        "train": ids[: number - 4],
        "trainaug": ids[: number - 4],
        "val": ids[number - 4 :],
    }.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(chosen))
    return root
