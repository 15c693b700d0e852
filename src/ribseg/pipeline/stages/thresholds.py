"""The background score of a stage's maps: given, or chosen with or without ground truth."""

from functools import partial

import torch

from ribseg.data.io.maps import load_maps, map_path
from ribseg.errors import ConfigError, DataError
from ribseg.functional.threshold import otsu, score_histogram
from ribseg.pipeline.recipe.methods import MapSource
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.stages.evaluate import EvaluateSettings, sweep_split
from ribseg.store.settings import SHARE
from ribseg.store.stage import Stage

VERSION = 1
# Name of a way to choose the score -> how many splits with masks it needs; it uses the last of them.
CHOICES = {"oracle": 1, "held_out": 2, "unsupervised": 0}
SCORE = partial(SHARE, words=tuple(CHOICES))  # check of a setting of a score


def check_threshold(session: Session, name: str, setting: float | str) -> None:
    """Checks that the data has the masks that a background score is chosen on.

    Args:
        session: of the run.
        name: of the setting in `refine`.
        setting: its value.

    Raises:
        ConfigError: there are too few splits with masks.
    """
    splits, needed = list(session.cfg.data.eval_splits or ()), CHOICES.get(str(setting), 0)
    if needed > len(splits):
        raise ConfigError(
            f"refine.{name}={setting} needs {needed} of data.eval_splits with masks, got {splits}; give a "
            "number, or unsupervised, which needs none"
        )


def needs_masks(setting: float | str) -> bool:
    """Whether a setting of a background score needs ground truth."""
    return isinstance(setting, str) and CHOICES[setting] > 0


def all_images(session: Session, masks: bool) -> str:
    """The fingerprint of all images; of data.pseudo_split separately, for scores without ground truth."""
    data = session.data
    own = "" if data.pseudo_split == data.train_split else data.pseudo.fingerprint(masks=False)
    return data.fingerprint(masks) + own


def choose_threshold(session: Session, stage: Stage[Session], setting: float | str) -> float:
    """The background score of a stage's maps; one that is chosen is kept in the store.

    Args:
        session: of the run.
        stage: that made the maps.
        setting: a number; "oracle": the best on the first of data.eval_splits; "held_out": the best on the
            second; "unsupervised": Otsu's threshold of the maps of data.pseudo_split.
    """
    if not isinstance(setting, str):
        return float(setting)
    thresholds = session.settings[EvaluateSettings].thresholds
    counts = {"thresholds": thresholds, "choice": setting, "eval_splits": list(session.data.eval_splits)}
    data = all_images(session, needs_masks(setting))
    artefact = session.store.artefact("threshold", counts, {stage.kind: stage.artefact}, data, VERSION)
    best = unsupervised_threshold if setting == "unsupervised" else supervised_threshold
    found = session.computed(artefact, lambda: {"threshold": best(session, stage, setting)})
    return float(found.facts["threshold"])


def supervised_threshold(session: Session, stage: Stage[Session], setting: str) -> float:
    """The threshold with the best mIoU on one of data.eval_splits."""
    folder = list(session.data.evals.values())[CHOICES[setting] - 1]
    source = MapSource(stage.name, stage.name, stage.name)
    sweep = sweep_split(session, folder, [source], "Threshold on")[stage.name].sweep()
    return round(float(sweep["best_threshold"]), 6)


def unsupervised_threshold(session: Session, stage: Stage[Session], setting: str) -> float:
    """Otsu's threshold of the maps of all images of data.pseudo_split."""
    cfg, folder = session.settings[EvaluateSettings], session.data.pseudo
    thresholds = torch.linspace(0, 1, cfg.thresholds)

    def count(image_id: str) -> torch.Tensor:
        maps = load_maps(map_path(stage.artefact.folder, image_id))
        return score_histogram(maps.strided if maps.full is None else maps.full, thresholds)

    counts = session.map(count, folder.ids, "Threshold without masks", "image", "threads")
    total = sum(counts, torch.zeros(len(thresholds) + 1, dtype=torch.int64))
    if not total.any():
        raise DataError(f"the maps of {stage.name} hold no class on {folder.split}: no background score fits")
    return round(float(thresholds[otsu(total, thresholds)]), 6)
