"""The package as it is built: with the configurations of conf/, which lie beside src/ in a checkout."""

from pathlib import Path

from setuptools.build_meta import *  # noqa: F403 - the backend that pyproject.toml names
from setuptools.command.build_py import build_py


class BuildPackage(build_py):
    """Copies conf/ into the package of a wheel. An editable installation reads it where it lies."""

    def run(self) -> None:
        """Builds the package."""
        super().run()
        if self.editable_mode:
            return
        for path in sorted(Path("conf").rglob("*.yaml")):
            target = Path(self.build_lib, "ribseg", path)
            self.mkpath(str(target.parent))
            self.copy_file(str(path), str(target))
