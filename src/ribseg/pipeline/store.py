"""The artefact store: a stage's folder is named by what went into it, and says when it is complete.

`<root>/<stage>-<digest>/`, where the digest covers the stage's settings, the digests of its inputs and the
data. `manifest.json` is written last; a folder without it belongs to a run that is not over or was killed,
and is completed by the next run with the same settings.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ribseg.data.files import atomic_write
from ribseg.errors import ConfigError, DataError, DatasetNotFoundError
from ribseg.models.backbone import resolve_weights

# Raise this when a change makes a stage's result differ for equal settings: old artefacts are left alone.
FORMAT = 2
MANIFEST = "manifest.json"
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
    """What a stage with certain settings leaves, finished or not.

    Attributes:
        stage: name of the stage.
        folder: where its files are.
        key: what the digest is made of: settings, inputs, data.
    """

    stage: str
    folder: Path
    key: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits."""
        return self.folder.name.removeprefix(f"{self.stage}-")

    @property
    def finished(self) -> bool:
        """Whether the manifest is there."""
        return (self.folder / MANIFEST).is_file()

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage said of its result when it finished.

        Raises:
            DataError: it has not finished, or its manifest is broken.
        """
        path = self.folder / MANIFEST
        try:
            return json.loads(path.read_text())["facts"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(
                f"no readable manifest {path} ({error}); delete {self.folder} and run again"
            ) from error

    def finish(self, facts: Mapping[str, Any], seconds: float) -> None:
        """Writes the manifest: from now on the stage is not run again."""
        manifest = {
            "stage": self.stage,
            **self.key,
            "facts": dict(facts),
            "seconds": round(seconds, 2),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "environment": environment(),
        }
        atomic_write(self.folder / MANIFEST, json.dumps(manifest, indent=2).encode())


class Store:
    """A folder of artefacts.

    Args:
        root: is made if it is not there.

    Raises:
        ConfigError: it cannot be written to.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        check_writable(self.root, "store.root")

    def artefact(
        self, stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Artefact], data: str
    ) -> Artefact:
        """The place for the result of a stage; its folder is not made yet.

        Args:
            stage: name, first part of the folder's name.
            settings: everything that changes the result, as plain values.
            inputs: artefacts that the stage reads.
            data: fingerprint of the images, labels and masks that it reads.
        """
        key = {
            "format": FORMAT,
            "settings": dict(settings),
            "inputs": {name: artefact.folder.name for name, artefact in inputs.items()},
            "data": data,
        }
        text = json.dumps([stage, key], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Artefact(stage, self.root / f"{stage}-{digest}", key)


def check_writable(folder: Path, setting: str) -> None:
    """Makes a folder and tries to write into it, so that this fails now and not after the training.

    Raises:
        ConfigError: names the folder and the setting.
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


def file_digest(path: str | Path) -> str:
    """sha256 of a file that a setting names, so that the digest follows its content.

    Args:
        path: of the file; "demo" is the built-in backbone.

    Raises:
        ConfigError: there is no such file.
    """
    file = resolve_weights(path)
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read {file} ({error.strerror}); check the path") from error


def folder_digest(folder: str | Path) -> str:
    """sha256 over names, sizes and times of all files below a folder that a setting names.

    Follows their content without reading it all; does not depend on where the folder is.

    Raises:
        DatasetNotFoundError: there is no such folder, or nothing in it.
    """
    root, digest, number = Path(folder), hashlib.sha256(), 0
    for place, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            state = Path(place, name).stat()
            inside = os.path.relpath(place, root)
            digest.update(f"{inside}/{name}:{state.st_size}:{state.st_mtime_ns}\n".encode())
            number += 1
    if number == 0:
        raise DatasetNotFoundError(f"no files in {root}; check the path")
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """Versions of what computes, and the kind of machine."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
