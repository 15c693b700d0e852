"""The settings that enter a stage's digest: all of its sections, except a list of neutral settings.

A setting that is not known to be neutral counts, including those that a user has added. So do the content of
every file that a setting names, and the source of every `_target_` outside this package.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ribseg.models.weights_file import resolve_weights
from ribseg.store.sources import foreign_targets, is_foreign, source_digest

PLACE = "the fingerprint of the data covers its content"
SHOWN = "changes the output, not the computation"
DEVICE = "selects devices; batch sizes count all processes together"
SPEED = "changes the speed, and results by rounding at most"
# Sections of the configuration that no result depends on -> the reason.
NEUTRAL_PARTS = {
    "name": SHOWN,
    "run": "selects the stages",
    "rerun": "selects the stages",
    "shard": "selects images; the result is that of all shards",
    "objective": "is read from the results",
    "progress": SHOWN,
    "process_timeout": SHOWN,
    "check_files": "broken files end the run, or are removed from the lists",
    "engine": "makes the same files elsewhere",
    "store": PLACE,
    "logger": SHOWN,
    "report": SHOWN,
    "prepare": "the fingerprint of the data covers its output",
}
# Neutral settings in the sections that count -> the reason. Under a user's own `_target_` only those of
# ALWAYS_NEUTRAL are neutral, because the same name may mean something else there.
NEUTRAL = {
    "data.root": PLACE,
    "data.train_split": PLACE,
    "data.pseudo_split": PLACE,
    "data.labels": PLACE,
    "data.classes": PLACE,
    "data.masks_dir": PLACE,
    "data.images_dir": PLACE,
    "data.lists_dir": PLACE,
    "data.held_out": PLACE,
    "data.on_error": "the fingerprint excludes the images that it skips",
    "data.num_workers": "samples are functions of seed, epoch and image id",
    "data.pin_memory": SPEED,
    "trainer.accelerator": DEVICE,
    "trainer.devices": DEVICE,
    "trainer.strategy": DEVICE,
    "trainer.num_nodes": DEVICE,
    "trainer.enable_progress_bar": SHOWN,
    "trainer.enable_model_summary": SHOWN,
    "trainer.log_every_n_steps": SHOWN,
    "trainer.num_sanity_val_steps": "runs before the training",
    "trainer.profiler": SHOWN,
    "maps.threads": SPEED,
    "maps.pool_gib": SPEED,
    "evaluate.workers": SPEED,
    "refine.workers": SPEED,
    "refine.maps": "selects an input, whose digest counts",
    "segmenter.workers": SPEED,
    "segmenter.sources": "selects segmenters; each has its own artefact",
    "segmenter.masks_dir": PLACE,
    "segmenter.expected": SHOWN,
    "bottleneck.workers": SPEED,
    "bottleneck.mnist_root": PLACE,
    "imported.folder": "the digest of its files counts instead",
}
ALWAYS_NEUTRAL = ("data.root", "data.num_workers", "data.pin_memory")
CRF_BACKEND = "backend"


def settings_of(cfg: Mapping[str, Any], parts: Iterable[str], neutral: Iterable[str] = ()) -> dict[str, Any]:
    """The settings that count for a digest, as plain values.

    Args:
        cfg: the composed configuration, or the same as plain values.
        parts: the sections that the stage depends on; missing ones are ignored.
        neutral: dotted names of settings that this stage does not depend on, in addition to `NEUTRAL`.

    Returns:
        Section -> settings without the neutral ones, file names replaced by digests of their content; under
        "sources" the digests of all foreign `_target_`s.
    """
    dropped = {*NEUTRAL, *neutral}
    return with_sources({part: _counting(plain(cfg[part]), part, dropped) for part in parts if part in cfg})


def with_sources(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with the digests of all `_target_`s of the user's code under "sources"."""
    sources = {target: source_digest(target) for target in sorted(set(foreign_targets(settings)))}
    return settings | ({"sources": sources} if sources else {})


def contents(node: Any) -> Any:
    """Nested settings with file names replaced by digests of the files' content."""
    return _counting(node, "", set())


def plain(node: Any) -> Any:
    """A configuration node as plain dictionaries, lists and values, with interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _counting(node: Any, path: str, dropped: set[str]) -> Any:
    if isinstance(node, dict):
        if is_foreign(str(node.get("_target_", "ribseg"))):
            dropped = dropped & set(ALWAYS_NEUTRAL)
        children = {name: f"{path}.{name}" for name in node}
        return {n: _counting(node[n], p, dropped) for n, p in children.items() if p not in dropped}
    if isinstance(node, list):
        return [_counting(value, path, dropped) for value in node]
    return _content(node, path.rpartition(".")[2]) if isinstance(node, str) else node


def _content(value: str, name: str) -> str:
    """The value of a text setting: a digest for a file name, the resolved backend for "auto"."""
    if name == CRF_BACKEND and value == "auto":
        return "torch" if find_spec("pydensecrf") is None else "pydensecrf"
    path = resolve_weights(value) if name == "weights" else Path(value)
    looks_like_file = path.suffix or len(path.parts) > 1
    return f"file:{_file_digest(path)}" if looks_like_file and path.is_file() else value


def _file_digest(path: Path) -> str:
    state = path.stat()
    return _cached_digest(os.fspath(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _cached_digest(path: str, size: int, changed: int) -> str:
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
