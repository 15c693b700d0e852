"""The artefact store: results of stages, in folders named by a digest of everything they depend on.

`<root>/<stage>-<digest>/`: the digest covers the stage's version and settings, the digests of its inputs, and
the data. `manifest.json` is written last; a folder without it belongs to a run that is still running, which
others wait for (`ribseg.store.locks`), or that was killed, and which the next one completes.
"""

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ribseg.errors import ConfigError, DataError
from ribseg.files import write_json
from ribseg.store.locks import locked

MANIFEST = "manifest.json"
REPLACEMENT = ".new"  # suffix of the folder in which a stage is computed again, beside the old one
PACKAGES = (
    "ribseg",
    "torch",
    "torchvision",
    "timm",
    "pytorch-lightning",
    "albumentations",
    "numpy",
    "pillow",
)


@dataclass(frozen=True)
class Artefact:
    """The result of a stage with certain settings, in a folder of the store, finished or not.

    Attributes:
        stage: name of the stage.
        folder: where its files are.
        key: the content of the digest: version of the stage, settings, inputs, data.
        inputs: the artefacts that it is computed from.
    """

    stage: str
    folder: Path
    key: Mapping[str, Any]
    inputs: "Mapping[str, Artefact]" = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits."""
        return self.folder.name.removeprefix(f"{self.stage}-").removesuffix(REPLACEMENT)

    @property
    def complete(self) -> bool:
        """Whether the manifest exists; inputs may have been computed again since it was written."""
        return (self.folder / MANIFEST).is_file()

    @property
    def finished(self) -> bool:
        """Whether the manifest exists, and no input has been computed again since it was written."""
        return self.complete and not self.outdated_by

    @property
    def outdated_by(self) -> list[str]:
        """Names of the inputs that were computed again (`rerun`) after this artefact."""
        if not self.complete:
            return []
        seen = self.manifest.get("input_reruns", {})
        there = {name: artefact for name, artefact in self.inputs.items() if artefact.complete}
        return [name for name, artefact in there.items() if artefact.reruns != seen.get(name, 0)]

    @property
    def reruns(self) -> int:
        """How often `rerun` has computed it again."""
        return int(self.manifest.get("reruns", 0)) if self.complete else 0

    @property
    def manifest(self) -> dict[str, Any]:
        """The content of the manifest, which is written when the stage finishes.

        Raises:
            DataError: the stage has not finished, or the manifest is broken.
        """
        path = self.folder / MANIFEST
        try:
            manifest = json.loads(path.read_text())
            if isinstance(manifest["facts"], dict):
                return manifest
            problem = "its facts are no dictionary"
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            problem = str(error)
        raise DataError(f"no readable manifest {path} ({problem}); delete {self.folder} and run again")

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that the stage returned when it finished; raises as `manifest`."""
        return self.manifest["facts"]

    @property
    def peak_gib(self) -> dict[str, float]:
        """Peak "memory" of the first process while it was computed, and "GPU memory"; {} if not measured."""
        return dict(self.manifest.get("peak_gib", {}))

    @property
    def other_versions(self) -> str:
        """Versions and commit that computed it, as far as they differ from those of this process."""
        made, now = self.manifest.get("environment", {}), environment()
        names = [name for name in now if name in made and made[name] != now[name]]
        return ", ".join(f"{name} {made[name]}" for name in names)

    def replacement(self) -> "Artefact":
        """The same artefact in another folder, to be computed there while the old result is kept."""
        return dataclasses.replace(self, folder=self.folder.with_name(self.folder.name + REPLACEMENT))

    def compute(self, work: Callable[[], Mapping[str, Any]], say: Callable[[str], None]) -> None:
        """Calls `work` and finishes with the facts that it returns, unless another run has done so by then.

        Args:
            work: returns the facts; is called while no other run computes this artefact.
            say: prints a line, if such a run has to be waited for.
        """
        with locked(self.folder, self.stage, say):
            if self.finished:
                return
            start = time.perf_counter()
            facts = work()
            self.finish(facts, time.perf_counter() - start, {})

    def replace(self, facts: Mapping[str, Any], seconds: float, peak_gib: Mapping[str, float]) -> None:
        """Replaces the old result, which is deleted, by the finished `replacement`."""
        new, old = self.replacement(), self.folder.with_name(self.folder.name + ".old")
        new.finish(facts, seconds, peak_gib, self.reruns + 1)
        shutil.rmtree(old, ignore_errors=True)  # left by a process that was killed here
        if self.folder.is_dir():
            self.folder.rename(old)
        new.folder.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def finish(
        self, facts: Mapping[str, Any], seconds: float, peak_gib: Mapping[str, float], reruns: int = 0
    ) -> None:
        """Writes the manifest, so that the stage is not run again.

        Args:
            facts: that the stage returned.
            seconds: that it took.
            peak_gib: "memory" of the first process, and "GPU memory"; {} if not measured.
            reruns: how often it has been computed again.
        """
        manifest = {
            "stage": self.stage,
            **self.key,
            "facts": dict(facts),
            "seconds": round(seconds, 2),
            "peak_gib": {name: round(gib, 3) for name, gib in peak_gib.items()},
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "reruns": reruns,
            "input_reruns": {name: artefact.reruns for name, artefact in self.inputs.items()},
            "environment": environment(),
        }
        write_json(self.folder / MANIFEST, manifest, indent=2)


class Store:
    """The artefact store: a folder with a subfolder per artefact.

    Args:
        root: is created if it does not exist.

    Raises:
        ConfigError: it cannot be written to.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        check_writable(self.root, "store.root")

    def artefact(
        self,
        stage: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Artefact],
        data: str,
        version: int = 1,
    ) -> Artefact:
        """The artefact of a stage; its folder is not created.

        Args:
            stage: name, first part of the folder's name.
            settings: all settings that change the result, as plain values.
            inputs: artefacts that the stage reads.
            data: fingerprint of the images, labels and masks that it reads.
            version: of the stage's code, see `Stage`.
        """
        key = {
            "version": version,
            "settings": dict(settings),
            "inputs": {name: artefact.folder.name for name, artefact in inputs.items()},
            "data": data,
        }
        text = json.dumps([stage, key], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Artefact(stage, self.root / f"{stage}-{digest}", key, dict(inputs))


def check_writable(folder: Path, setting: str) -> None:
    """Creates a folder and writes a probe file, so that errors occur now and not after a training.

    Raises:
        ConfigError: it cannot be written to; names the folder and the setting.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder} ({error.strerror}); choose another place with {setting}=DIR"
        ) from error


@cache
def environment() -> dict[str, str]:
    """Versions of Python and packages, the machine type, and the commit of a git checkout."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    commit = source_commit()
    return found | ({"commit": commit} if commit else {})


def source_commit() -> str | None:
    """The commit of the package's files, with "+" if they have uncommitted changes; None outside git."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # fails if a repository merely contains the environment
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None  # installed from a wheel, or no git: the version has to do
