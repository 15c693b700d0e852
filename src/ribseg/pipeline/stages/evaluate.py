"""The evaluation stage: scores of all sources of maps on all evaluated splits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from ribseg.checks import check_number, check_switch
from ribseg.data.base import BaseDataset
from ribseg.data.io.maps import LocalizationMaps, load_maps, map_path
from ribseg.errors import ConfigError
from ribseg.files import write_json
from ribseg.functional import argmax_labels, boundary_counts, boundary_f
from ribseg.functional.evaluation import distance_tenths
from ribseg.metrics import bootstrap_miou, interval
from ribseg.metrics.evaluation import ImageCounts, MapEvaluator, full_size
from ribseg.metrics.masks import known
from ribseg.metrics.per_image import PerImageCounts
from ribseg.pipeline.recipe.build import build
from ribseg.pipeline.recipe.methods import MapSource
from ribseg.pipeline.recipe.session import REPORT, Session
from ribseg.store.artefact import Artefact
from ribseg.store.settings import COUNT, SHARE, counted, setting
from ribseg.store.stage import Stage

RESULT = "evaluation.json"
# Scores of the first split that are repeated one level up.
HEADLINE = ("best_miou", "best_threshold", "miou_at_fixed", "fixed_threshold")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """The settings `evaluate`."""

    thresholds: int = setting(partial(check_number, low=2, whole=True))
    fixed_threshold: float | None = setting(partial(SHARE, words=(None,)))
    bootstrap: int = setting(COUNT)
    boxes: bool = setting(check_switch)
    boundary: bool = setting(check_switch)


class EvaluateStage(Stage[Session]):
    """Scores every source whose maps are in the store, each at its own thresholds."""

    name = "evaluate"
    files = (RESULT,)
    version = 5  # added: PxAP, MaxBoxAccV2, boundary F-score, errors per class

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.cfg = session.settings[EvaluateSettings]

    def wanted(self) -> bool:
        """Whether the run evaluates localization maps, or reports an evaluation of maps in the store."""
        chosen = self.session.run.chosen
        if self.name in chosen:
            return True
        reports = REPORT in chosen and bool(self.session.data.eval_splits)
        return reports and bool(ready_sources(self.session))

    def inputs(self) -> Sequence[Stage[Session]]:
        """The stages whose maps exist or will be made.

        Raises:
            ConfigError: there are none.
        """
        names = dict.fromkeys(source.stage for source in ready_sources(self.session))
        if not names:
            raise ConfigError(
                "nothing to evaluate: the store holds no localization maps for these settings; "
                "add stages to run=[...], for instance run=[classifier,cam,rib,evaluate]"
            )
        return [self.session.run.planned[name] for name in names]

    def settings(self) -> dict[str, Any]:
        """Its own, with those of the methods that modify maps for scoring."""
        changing = {e.name: e.settings for e in self.session.entries.values() if e.maps_of is not None}
        common = self.session.counted("seed", data=("eval_splits",))
        return common | {"evaluate": counted(self.cfg), "methods": changing}

    def data(self) -> str:
        """All images and masks."""
        return self.session.data.fingerprint(masks=True)

    def check(self) -> None:
        """Checks that there is something to score with."""
        if not self.session.cfg.data.eval_splits:
            raise ConfigError(
                "run=[..., evaluate] needs data.eval_splits=[...] with masks; leave evaluate out without"
            )

    def work(self, target: Artefact) -> dict[str, Any]:
        """Evaluates in the first process; the others wait."""
        self.session.group.on_first(lambda: self._evaluate(target))
        return {}

    def _evaluate(self, target: Artefact) -> None:
        session, cfg = self.session, self.cfg
        sources, evals = ready_sources(session), session.data.evals
        sweeps = {name: sweep_split(session, evals[name], sources, boxes=cfg.boxes) for name in evals}
        result = score(sweeps, cfg.fixed_threshold, cfg.bootstrap, session.cfg.seed)
        for split, folder in evals.items():
            counts = {
                name: evaluator.counts(shown_threshold(result[name]["split"][split]))
                for name, evaluator in sweeps[split].items()
            }
            PerImageCounts.from_counts(folder.ids, counts).save(counts_path(target.folder, split))
            if cfg.boundary:
                add_boundaries(session, folder, sources, result)
        write_json(target.folder / RESULT, result)


def counts_path(folder: Path, split: str) -> Path:
    """The file with the counts of a split's images at `shown_threshold`, in the folder of the stage."""
    return folder / "images" / f"{split}.npz"


def image_counts(artefact: Artefact | None, results: Mapping[str, Any]) -> dict[str, PerImageCounts]:
    """Split -> counts of its images, of all splits that a run has evaluated; {} without an evaluation."""
    if artefact is None or "localization" not in results:
        return {}
    splits = next(iter(results["localization"].values()))["split"]
    return {split: PerImageCounts.load(counts_path(artefact.folder, split)) for split in splits}


def shown_threshold(scores: Mapping[str, Any]) -> float:
    """The threshold of single images and pictures: the fixed one of the split, else its best."""
    fixed = scores["fixed_threshold"]
    return float(scores["best_threshold"] if fixed is None else fixed)


def ready_sources(session: Session) -> list[MapSource]:
    """Sources whose maps exist, or will when the evaluation starts."""
    run = session.run

    def there(stage: Stage[Session] | None) -> bool:
        return stage is not None and (stage.name in run.chosen or run.is_ready(stage))

    return [source for source in session.sources.values() if there(run.planned.get(source.stage))]


def sweep_split(
    session: Session,
    folder: BaseDataset,
    sources: Iterable[MapSource],
    title: str = "Evaluating",
    boxes: bool = False,
) -> dict[str, MapEvaluator]:
    """Source -> evaluator with the counts of a split at all thresholds; reads its maps and masks once."""
    cfg, run = session.settings[EvaluateSettings], session.run
    chosen = {source.name: (source.stage, map_change(source)) for source in sources}
    thresholds = torch.linspace(0, 1, cfg.thresholds)
    evaluators = {source: MapEvaluator(folder.num_classes, thresholds, boxes=boxes) for source in chosen}

    def count(image_id: str) -> dict[str, ImageCounts]:
        target = torch.from_numpy(folder.mask(image_id)).long()
        stages = {stage for stage, _ in chosen.values()}
        read = {stage: load_maps(map_path(run.planned[stage].artefact.folder, image_id)) for stage in stages}
        tenths = tenths_of(read["cam"], target) if "cam" in read else None
        return {
            source: evaluators[source].count(change(read[stage]) if change else read[stage], target, tenths)
            for source, (stage, change) in chosen.items()
        }

    shown = session.map(count, folder.ids, f"{title} {folder.split}", "image", "threads")
    for counts, labels in zip(shown, folder.labels, strict=True):
        for source, one in counts.items():
            evaluators[source].add(one, int((labels > 0).sum()))
    return evaluators


def add_boundaries(
    session: Session, folder: BaseDataset, sources: Iterable[MapSource], result: Mapping[str, Any]
) -> None:
    """Adds the boundary F-scores of a split, at the thresholds of `shown_threshold`; reads its maps again."""
    chosen = {
        source.name: (
            maps_reader(session.run.planned[source.stage].artefact.folder, source),
            shown_threshold(result[source.name]["split"][folder.split]),
        )
        for source in sources
    }
    total = {name: torch.zeros(4, folder.num_classes, dtype=torch.int64) for name in chosen}

    def count(image_id: str) -> dict[str, torch.Tensor]:
        target = torch.from_numpy(folder.mask(image_id)).long()
        found = {}
        for name, (read, threshold) in chosen.items():
            maps = read(image_id)
            full = full_size(maps, (target.shape[0], target.shape[1]))
            labels = argmax_labels(full, maps.classes, threshold)
            found[name] = boundary_counts(labels, target, folder.num_classes)
        return found

    for counts in session.map(count, folder.ids, f"Boundaries of {folder.split}", "image", "threads"):
        for name, one in counts.items():
            total[name] += one
    for name, summed in total.items():
        result[name]["split"][folder.split] |= boundary_scores(summed)


def boundary_scores(counts: torch.Tensor) -> dict[str, Any]:
    """The mean "boundary_f" and "boundary_f_per_class" of (4, C) summed `boundary_counts`, for JSON."""
    per_class = boundary_f(counts)
    return {"boundary_f": known(per_class.nanmean()[None])[0], "boundary_f_per_class": known(per_class)}


def tenths_of(cam_maps: LocalizationMaps, target: torch.Tensor) -> torch.Tensor:
    """Tenths of the objects by distance from CAM's peak, (H, W); see `distance_tenths`."""
    full = full_size(cam_maps, (target.shape[0], target.shape[1]))
    return distance_tenths(full, cam_maps.classes, target)


def map_change(source: MapSource) -> Callable[[LocalizationMaps], LocalizationMaps] | None:
    """The function that modifies a source's maps for scoring; None for none."""
    return None if source.entry is None else build(OmegaConf.create(source.entry.arguments()))


def maps_reader(folder: Path, source: MapSource) -> Callable[[str], LocalizationMaps]:
    """The function that reads the maps of an image id from a stage's folder, as modified for scoring."""
    change = map_change(source)

    def read(image_id: str) -> LocalizationMaps:
        maps = load_maps(map_path(folder, image_id))
        return change(maps) if change else maps

    return read


def score(
    sweeps: Mapping[str, Mapping[str, MapEvaluator]], fixed_threshold: float | None, resamples: int, seed: int
) -> dict[str, Any]:
    """Scores of every source on every split, as "localization" in `results.json`.

    The fixed threshold of a split is the best one of the next split, separately for each source.

    Args:
        sweeps: split -> source -> evaluator.
        fixed_threshold: for a single split, without another one to choose on; None for none.
        resamples: number of bootstrap resamples of the images.
        seed: of the bootstrap.
    """
    splits = list(sweeps)
    result: dict[str, Any] = {}
    for source in sweeps[splits[0]]:
        best = {split: round(float(sweeps[split][source].sweep()["best_threshold"]), 6) for split in splits}
        by_split = {}
        for split, other in zip(splits, splits[1:] + splits[:1], strict=True):
            fixed = best[other] if other != split else fixed_threshold
            by_split[split] = sweeps[split][source].summary(fixed, resamples, seed)
            by_split[split]["fixed_threshold_from"] = other if other != split else None
        first = by_split[splits[0]]
        result[source] = {key: first[key] for key in HEADLINE} | {"split": by_split}
    if "cam" in result:
        add_gains(result, sweeps, resamples, seed)
    return result


def add_gains(
    result: dict[str, Any], sweeps: Mapping[str, Mapping[str, MapEvaluator]], resamples: int, seed: int
) -> None:
    """Adds "gain_over_cam" at fixed thresholds, with its paired 95 % bootstrap interval over images."""
    for split, evaluators in sweeps.items():
        cam = result["cam"]["split"][split]
        if cam["miou_at_fixed"] is None:
            continue  # so it is for all sources
        base = bootstrap_miou(evaluators["cam"].counts(cam["fixed_threshold"]), resamples, seed)
        for source in evaluators.keys() - {"cam"}:
            values = result[source]["split"][split]
            draws = bootstrap_miou(evaluators[source].counts(values["fixed_threshold"]), resamples, seed)
            values["gain_over_cam"] = values["miou_at_fixed"] - cam["miou_at_fixed"]
            values["gain_interval"] = interval(draws - base)
