"""Finished runs, opened again from their folders: configuration, results, and artefacts in the store."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ribseg.errors import ConfigError, DataError, reason
from ribseg.metrics.per_image import PerImageCounts
from ribseg.pipeline.recipe.methods import MapSource, entries, map_sources
from ribseg.pipeline.stages.evaluate import image_counts
from ribseg.store.artefact import Artefact

# What Hydra records in the folder of a run: its settings, and what stood on the command line.
CONFIG, OVERRIDES = ".hydra/config.yaml", ".hydra/overrides.yaml"
RESULTS = "results.json"
LONGEST = 40  # characters of a run's name in tables


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: that `hydra.run.dir` named, or a job's folder of a sweep.
        name: in tables.
        cfg: its configuration, with interpolations.
        results: the content of `results.json`.
    """

    folder: Path
    name: str
    cfg: DictConfig
    results: dict[str, Any]

    @property
    def directory(self) -> Path:
        """Where the run was started, if that is still there; else the current directory."""
        place = Path(self.results.get("directory", ""))
        return place if place.is_dir() else Path.cwd()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Works in that directory: data and store may have relative paths."""
        before = Path.cwd()
        os.chdir(self.directory)
        try:
            yield
        finally:
            os.chdir(before)

    @cached_property
    def sources(self) -> dict[str, MapSource]:
        """Name -> source of maps of its configuration."""
        return map_sources(entries(self.cfg))

    @cached_property
    def artefacts(self) -> dict[str, Artefact]:
        """Stage -> its artefact, of all stages that `results.json` names.

        Raises:
            DataError: the store holds one no longer.
        """
        places = self.results["store"].items()
        found = {name: Artefact(name, Path(self.directory, place), {}) for name, place in places}
        gone = [str(artefact.folder) for artefact in found.values() if not artefact.complete]
        if gone:
            raise DataError(
                f"{self.folder}: the store no longer holds {', '.join(gone)}. Run its command again, or "
                "call this in the folder in which the run was started, if these paths are relative"
            )
        return found

    @cached_property
    def counts(self) -> dict[str, PerImageCounts]:
        """Split -> counts of its images, of the evaluated splits."""
        return image_counts(self.artefacts.get("evaluate"), self.results)


def open_runs(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[FinishedRun]:
    """The runs in some folders, each the folder of a run, or of a sweep with the folders of its jobs.

    Args:
        folders: of runs and sweeps.
        names: of the runs in tables; None for the overrides that differ, or the folders' names.

    Raises:
        DataError: a folder holds no finished run, or its files cannot be read.
        ConfigError: the names are not as many as the runs, or two are equal.
    """
    places = list(dict.fromkeys(place for folder in folders for place in _places(folder)))
    chosen = list(names) if names else run_names(places)
    if len(chosen) != len(places):
        found = ", ".join(map(str, places))
        raise ConfigError(f"expected {len(places)} names, one for each run ({found}), got {len(chosen)}")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"expected different names for the runs, got {', '.join(chosen)}")
    return [_open(place, name) for place, name in zip(places, chosen, strict=True)]


def _places(folder: Path) -> list[Path]:
    """The folder itself if it is that of a finished run, else those of the finished jobs in it."""
    if (folder / RESULTS).is_file():
        return [folder]
    jobs = [path.parent for path in folder.glob(f"*/{RESULTS}")]
    if not jobs:
        raise DataError(
            f"{folder} holds no finished run: expected {RESULTS} in it, or in its folders for a sweep. It is "
            "the folder that hydra.run.dir or hydra.sweep.dir named, as outputs/runs/demo/DATE"
        )
    return sorted(jobs, key=job_number)


def _open(folder: Path, name: str) -> FinishedRun:
    try:
        results = json.loads((folder / RESULTS).read_text())
        cfg = OmegaConf.load(folder / CONFIG)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise DataError(f"the run in {folder} cannot be read: {reason(error)}") from error
    if not isinstance(results, dict) or "store" not in results or not isinstance(cfg, DictConfig):
        raise DataError(f"{folder}: expected results and settings of ribseg in {RESULTS} and {CONFIG}")
    return FinishedRun(folder, name, cfg, results)


def run_names(folders: Sequence[Path]) -> list[str]:
    """Short and different names: the overrides that not all runs have, else what differs in their paths."""
    if len(folders) == 1:
        return [folders[0].resolve().name]
    given = [overrides_of(folder) for folder in folders]
    common = set.intersection(*map(set, given))
    differ = [[override for override in each if override not in common] for each in given]
    keys = {word.partition("=")[0] for each in differ for word in each}
    plain = len({key.rpartition(".")[2] for key in keys}) == len(keys)  # their last parts tell them apart

    def short(override: str) -> str:
        return override[override.partition("=")[0].rfind(".") + 1 :] if plain else override

    names = [" ".join(map(short, each)) for each in differ]
    if all(0 < len(name) <= LONGEST for name in names) and len(set(names)) == len(names):
        return names
    whole = [folder.resolve() for folder in folders]
    begin = os.path.commonpath(whole)
    return [path.relative_to(begin).as_posix() for path in whole]


def overrides_of(folder: Path) -> list[str]:
    """The overrides of the run in a folder, from Hydra's record; [] without one, as of a call in Python."""
    path = folder / OVERRIDES
    found = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else []
    return list(map(str, found)) if isinstance(found, list) else []


def job_number(folder: Path) -> tuple[int, str]:
    """A key that sorts the folders of jobs by their numbers, others by name."""
    return (int(folder.name) if folder.name.isdigit() else 0, folder.name)


def differing_settings(runs: Sequence[FinishedRun]) -> dict[str, list[str]]:
    """Setting -> its value in each run as text, of all settings in which the runs differ; "-" where absent.

    Interpolations are shown as such, so that a setting which others refer to appears once.
    """
    flat = [dict(_leaves(OmegaConf.to_container(run.cfg, resolve=False))) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    found = {name: [settings.get(name, "-") for settings in flat] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def _leaves(node: Any, path: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, "null" if node is None else str(node)
