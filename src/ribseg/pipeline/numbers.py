"""Ranges of the numbers in a configuration, and its switches, checked before anything runs."""

import math
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from ribseg.errors import ConfigError
from ribseg.pipeline.thresholds import CHOICES


class Range(NamedTuple):
    """What a setting may be.

    Attributes:
        whole: only integers.
        low: smallest value.
        high: largest value.
        words: what else it may be; None is written null.
    """

    whole: bool
    low: float
    high: float = math.inf
    words: tuple[str | None, ...] = ()

    def allows(self, value: Any) -> bool:
        """Whether a setting is in the range."""
        if value in self.words and isinstance(value, str | None):
            return True
        kinds = int if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        return math.isfinite(value) and self.low <= value <= self.high

    def __str__(self) -> str:
        kind = "an integer" if self.whole else "a number"
        bounds = f" >= {self.low:g}" if self.high == math.inf else f" in [{self.low:g}, {self.high:g}]"
        words = "".join(f", or {'null' if word is None else word}" for word in self.words)
        return kind + bounds + words


COUNT, NATURAL, SHARE, POSITIVE = Range(True, 1), Range(True, 0), Range(False, 0, 1), Range(False, 1e-30)
NUMBERS = {
    "seed": Range(True, 0, 2**32 - 1),
    "store.margin": Range(False, 0, words=(None,)),
    "classifier.epochs": COUNT,
    "data.batch_size": COUNT,
    "data.crop_size": COUNT,
    "data.max_side": Range(True, 1, words=(None,)),
    "maps.threads": COUNT,
    "maps.pool_gib": Range(False, 0),
    "rib.steps": NATURAL,
    "rib.lr": Range(False, 0, words=("auto",)),
    "rib.head_lr_factor": Range(False, 0),
    "rib.weight_decay": Range(False, 0),
    "rib.references": NATURAL,
    "rib.reference_chunk": Range(True, 1, words=(None,)),
    "rib.margin": Range(False, -1e30, words=(None,)),
    "rib.area_limit": Range(False, 0, 1, (None,)),
    "rib.area_threshold": SHARE,
    "rate_search.images": COUNT,
    "rate_search.low": POSITIVE,
    "rate_search.high": POSITIVE,
    "rate_search.completed": SHARE,
    "evaluate.thresholds": Range(True, 2),
    "evaluate.fixed_threshold": Range(False, 0, 1, (None,)),
    "evaluate.bootstrap": COUNT,
    "evaluate.workers": COUNT,
    "report.examples": COUNT,
    "affinity.epochs": COUNT,
    "affinity.batch_size": COUNT,
    "affinity.crop_size": COUNT,
    "affinity.module.radius": Range(True, 2),
    "refine.labels.foreground": Range(False, 0, 1, ("auto",)),
    "refine.labels.background": Range(False, 0, 1, ("auto",)),
    "refine.maps_threshold": Range(False, 0, 1, tuple(CHOICES)),
    "refine.walk_threshold": Range(False, 0, 1, tuple(CHOICES)),
    "refine.saliency_threshold": SHARE,
    "refine.pixel_adaptive.iterations": NATURAL,
    "refine.pixel_adaptive.temperature": POSITIVE,
    "refine.walk.steps": NATURAL,
    "refine.walk.radius": Range(True, 2),
    "refine.walk.beta": Range(False, 0),
    "refine.walk.power": Range(False, 0),
    "refine.workers": Range(True, 1, words=("auto",)),
    "segmenter.max_steps": COUNT,
    "segmenter.batch_size": COUNT,
    "segmenter.accumulate": COUNT,
    "segmenter.crop_size": COUNT,
    "segmenter.check_every": COUNT,
    "segmenter.average": Range(False, 0, 1, (None,)),
    "segmenter.workers": Range(True, 0, words=("auto",)),
    "segmenter.module.lr": Range(False, 0),
    "segmenter.module.head_lr_factor": Range(False, 0),
    "segmenter.module.head_bias_lr_factor": Range(False, 0),
    "segmenter.module.power": Range(False, 0),
    "segmenter.test.tile": Range(True, 16, words=(None,)),
    "segmenter.test.margin": Range(True, 0, words=(None,)),
    "bottleneck.seeds": COUNT,
    "bottleneck.marked": SHARE,
    "bottleneck.images.train": COUNT,
    "bottleneck.images.measured": COUNT,
    "bottleneck.images.scored": COUNT,
    "bottleneck.training.epochs": COUNT,
    "bottleneck.training.batch_size": COUNT,
    "bottleneck.training.lr": POSITIVE,
    "bottleneck.training.margin": Range(False, -1e30, words=(None,)),
    "bottleneck.rib.steps": NATURAL,
    "bottleneck.rib.lr": Range(False, 0),
    "bottleneck.rib.head_lr_factor": Range(False, 0),
    "bottleneck.rib.weight_decay": Range(False, 0),
    "bottleneck.rib.margin": Range(False, -1e30, words=(None,)),
    "bottleneck.rib.area_limit": Range(False, 0, 1, (None,)),
    "bottleneck.gradient.threshold": Range(False, 0),
    "bottleneck.gradient.sigma": Range(False, 0),
    "bottleneck.saturation": Range(False, 0),
    "bottleneck.information_bins": Range(True, 1, words=(None,)),
    "bottleneck.examples": COUNT,
    "bottleneck.workers": Range(True, 1, words=("auto",)),
}


# Any other word than true and false would count as true.
SWITCHES = (
    "tf32",
    "progress",
    "check_files",
    "imported.trust",
    "maps.crop_on_gpu",
    "maps.full",
    "export.program",
    "classifier.model.pretrained",
    "classifier.model.atrous",
    "rib.compile",
    "refine.labels.crf",
    "refine.walk.per_class",
    "affinity.backbone.pretrained",
    "segmenter.model.pretrained",
    "segmenter.module.balanced",
    "segmenter.sync_batchnorm",
    "segmenter.validate",
    "segmenter.test.flip",
    "bottleneck.wrong_class",
)


def check_numbers(cfg: DictConfig) -> None:
    """Checks every setting of `NUMBERS`, and of `SWITCHES` those that the configuration has.

    Raises:
        ConfigError: lists all that are out of range, with what was expected and found.
    """
    wrong = []
    for name, allowed in NUMBERS.items():
        value = OmegaConf.select(cfg, name)
        if not allowed.allows(value):
            wrong.append(f"{name}: expected {allowed}, got {'null' if value is None else value!r}")
    for name in SWITCHES:
        value = OmegaConf.select(cfg, name, default=False)
        if not isinstance(value, bool):
            wrong.append(f"{name}: expected true or false, got {'null' if value is None else value!r}")
    if wrong:
        raise ConfigError("settings out of range:\n  " + "\n  ".join(wrong))
