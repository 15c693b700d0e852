"""Ranges of the settings that the stages themselves read, and settings of the Trainer that they decide.

Arguments of objects and functions are checked by these; see `preflight`, which builds them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ribseg.checks import SettingError, check_choice, check_number, check_switch
from ribseg.errors import ConfigError
from ribseg.pipeline.stages.thresholds import CHOICES
from ribseg.pipeline.stages.variants import UNARIES
from ribseg.progress import check_progress

COUNT = partial(check_number, low=1, whole=True)
COUNT_OR_AUTO = partial(COUNT, words=("auto",))
SHARE = partial(check_number, low=0, high=1)
SCORE = partial(SHARE, words=tuple(CHOICES))


def check_published(name: str, value: Any) -> None:
    """Raises a SettingError unless a setting is a mapping split -> source -> fraction, or null.

    >>> check_published("report.published", {"val": {"cam": 48.3}})
    Traceback (most recent call last):
    ribseg.checks.SettingError: report.published.val.cam: expected a number in [0, 1], got 48.3
    """
    splits = {} if value is None else value
    if not isinstance(splits, Mapping) or not all(isinstance(s, Mapping) for s in splits.values()):
        raise SettingError(f"{name}: expected split -> source -> mIoU in [0, 1], got {value!r}")
    for split, scores in splits.items():
        for source, score in scores.items():
            SHARE(f"{name}.{split}.{source}", score)


CHECKS: dict[str, Callable[[str, Any], None]] = {
    "progress": check_progress,
    "seed": partial(check_number, low=0, high=2**32 - 1, whole=True),
    "process_timeout": partial(check_number, above=0),
    "maps.threads": COUNT,
    "maps.steps_side": partial(check_number, low=0, whole=True),
    "maps.pool_gib": partial(check_number, low=0),
    "rate_search.images": COUNT,
    "rate_search.low": partial(check_number, above=0),
    "rate_search.high": partial(check_number, above=0),
    "rate_search.completed": SHARE,
    "rate_search.growth": partial(check_number, above=1, words=(None,)),
    "evaluate.thresholds": partial(check_number, low=2, whole=True),
    "evaluate.fixed_threshold": partial(SHARE, words=(None,)),
    "evaluate.bootstrap": COUNT,
    "evaluate.workers": COUNT,
    "report.examples": COUNT,
    "report.images": partial(check_number, low=0, whole=True),
    "report.megabytes": partial(check_number, above=0),
    "report.published": check_published,
    "classifier.epochs": COUNT,
    "affinity.epochs": COUNT,
    "affinity.batch_size": COUNT,
    "affinity.crop_size": COUNT,
    "refine.labels.foreground": partial(SHARE, words=("auto",)),
    "refine.labels.background": partial(SHARE, words=("auto",)),
    "refine.maps_threshold": SCORE,
    "refine.walk_threshold": SCORE,
    "refine.attention_threshold": SCORE,
    "refine.saliency_threshold": SHARE,
    "refine.crf_unary": partial(check_choice, choices=UNARIES),
    "refine.workers": COUNT_OR_AUTO,
    "segmenter.max_steps": COUNT,
    "segmenter.batch_size": COUNT,
    "segmenter.accumulate": COUNT,
    "segmenter.crop_size": COUNT,
    "segmenter.check_every": COUNT,
    "segmenter.average": partial(SHARE, words=(None,)),
    "segmenter.workers": partial(check_number, low=0, whole=True, words=("auto",)),
    "bottleneck.seeds": COUNT,
    "bottleneck.marked": SHARE,
    "bottleneck.images.train": COUNT,
    "bottleneck.images.measured": COUNT,
    "bottleneck.images.scored": COUNT,
    "bottleneck.training.epochs": COUNT,
    "bottleneck.training.batch_size": COUNT,
    "bottleneck.training.margin": partial(check_number, words=(None,)),
    "bottleneck.saturation": partial(check_number, low=0),
    "bottleneck.information_bins": partial(COUNT, words=(None,)),
    "bottleneck.examples": COUNT,
    "bottleneck.workers": COUNT_OR_AUTO,
}
# Optional settings; false by default.
SWITCHES = (
    "tf32",
    "check_files",
    "evaluate.boxes",
    "evaluate.boundary",
    "maps.full",
    "export.program",
    "affinity.backbone.pretrained",
    "refine.labels.crf",
    "segmenter.sync_batchnorm",
    "segmenter.validate",
    "bottleneck.wrong_class",
)


# Settings of the Trainer that ribseg sets itself -> the setting to use instead.
DECIDED = {
    "callbacks": "callbacks.NAME._target_=... for every training, or classifier.callbacks and so on for one",
    "logger": "logger=csv, or logger.NAME._target_=...",
    "default_root_dir": "store.root and hydra.run.dir",
    "max_epochs": "classifier.epochs, affinity.epochs or bottleneck.training.epochs",
    "min_epochs": "classifier.epochs, affinity.epochs or bottleneck.training.epochs",
    "max_steps": "segmenter.max_steps, classifier.epochs or affinity.epochs",
    "min_steps": "segmenter.max_steps, classifier.epochs or affinity.epochs",
    "accumulate_grad_batches": "segmenter.accumulate; other trainings do not accumulate",
    "check_val_every_n_epoch": "segmenter.check_every",
    "val_check_interval": "segmenter.check_every",
    "enable_checkpointing": "nothing: interrupted trainings resume from checkpoints",
    "inference_mode": "nothing: each stage knows whether it needs gradients",
    "use_distributed_sampler": "nothing: the loaders divide the data among processes",
    "fast_dev_run": "small settings, as classifier.epochs=1: the store takes only complete results",
    "barebones": "logger=none progress=false",
}


def check_trainer(cfg: DictConfig) -> None:
    """Rejects settings of the Trainer that ribseg sets itself, instead of ignoring them.

    Raises:
        ConfigError: there is one; names the setting to use.
    """
    for name, instead in DECIDED.items():
        if name in cfg.trainer:
            raise ConfigError(f"trainer.{name} is decided by ribseg; use {instead}")


def check_ranges(cfg: DictConfig) -> None:
    """Checks the settings that the stages read, in the sections that the configuration has.

    Raises:
        SettingError: lists all that are out of range, with the expected and the found values.
    """
    there = [name for name in CHECKS if "." not in name or cfg.get(name.split(".")[0]) is not None]
    values = {name: OmegaConf.select(cfg, name) for name in there}
    values |= {name: OmegaConf.select(cfg, name, default=False) for name in SWITCHES}
    wrong = []
    for name, value in values.items():
        try:
            CHECKS.get(name, check_switch)(name, value)
        except SettingError as error:
            wrong.append(str(error))
    if wrong:
        raise SettingError("\n  ".join(wrong))
