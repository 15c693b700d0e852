"""The background score of a stage's maps: given, or chosen with or without ground truth."""

from collections.abc import Iterable

import torch
from omegaconf import DictConfig

from ribseg.data.io.maps import load_maps, map_path
from ribseg.errors import ConfigError, DataError
from ribseg.functional.threshold import otsu, score_histogram
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import MapSource
from ribseg.pipeline.stages.chains import ATTENTION, WALK
from ribseg.pipeline.stages.evaluate import sweep_split
from ribseg.workers import ordered_map

# Name of a way to choose the score -> how many splits with masks it needs; it uses the last of them.
CHOICES = {"oracle": 1, "held_out": 2, "unsupervised": 0}
# Settings of `evaluate` that background scores do not depend on.
SCORES_ONLY = tuple(f"evaluate.{name}" for name in ("fixed_threshold", "bootstrap", "boxes", "boundary"))
# Settings of `refine` with the score of the maps that variants start from: as made, or after a stage.
THRESHOLDS = {"": "maps_threshold", WALK: "walk_threshold", ATTENTION: "attention_threshold"}


def check_thresholds(cfg: DictConfig, settings: Iterable[str]) -> None:
    """Checks that the data has the masks that background scores are chosen on.

    Args:
        cfg: the composed configuration.
        settings: those of `THRESHOLDS` that will be used.

    Raises:
        ConfigError: there are too few splits with masks.
    """
    splits = list(cfg.data.eval_splits or ())
    for setting in settings:
        needed = CHOICES.get(cfg.refine[setting], 0)
        if needed > len(splits):
            raise ConfigError(
                f"refine.{setting}={cfg.refine[setting]} needs {needed} of data.eval_splits with masks, got "
                f"{splits}; give a number, or unsupervised, which needs none"
            )


def needs_masks(setting: float | str) -> bool:
    """Whether a setting of a background score needs ground truth."""
    return isinstance(setting, str) and CHOICES[setting] > 0


def all_images(context: Context, masks: bool) -> str:
    """The fingerprint of all images; of data.pseudo_split separately, for scores without ground truth."""
    data = context.data
    own = "" if data.pseudo_split == data.train_split else data.pseudo.fingerprint(masks=False)
    return data.fingerprint(masks) + own


def choose_threshold(context: Context, stage: str, setting: float | str) -> float:
    """The background score of a stage's maps.

    Args:
        context: of the run.
        stage: that made the maps.
        setting: a number; "oracle": the best on the first of data.eval_splits; "held_out": the best on the
            second; "unsupervised": Otsu's threshold of the maps of data.pseudo_split.
    """
    if not isinstance(setting, str):
        return float(setting)
    if setting == "unsupervised":
        return unsupervised_threshold(context, stage)
    folder = list(context.data.evals.values())[CHOICES[setting] - 1]
    source = MapSource(stage, stage, stage)
    sweep = sweep_split(context, folder, [source], "Threshold on")[stage].sweep()
    return round(float(sweep["best_threshold"]), 6)


def unsupervised_threshold(context: Context, stage: str) -> float:
    """Otsu's threshold of the maps of all images of data.pseudo_split."""
    settings, folder = context.cfg.evaluate, context.data.pseudo
    thresholds = torch.linspace(0, 1, settings.thresholds)

    def count(image_id: str) -> torch.Tensor:
        maps = load_maps(map_path(context.artefacts[stage].folder, image_id))
        return score_histogram(maps.strided if maps.full is None else maps.full, thresholds)

    results = ordered_map(count, folder.ids, settings.workers, threads=True)
    counts = context.track(results, "Threshold without masks", len(folder))
    total = sum(counts, torch.zeros(len(thresholds) + 1, dtype=torch.int64))
    if not total.any():
        raise DataError(f"the maps of {stage} hold no class on {folder.split}: no background score fits")
    return round(float(thresholds[otsu(total, thresholds)]), 6)
