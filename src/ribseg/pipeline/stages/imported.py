"""The stage that imports maps or masks of other programs, to be refined and evaluated."""

from collections.abc import Mapping
from typing import Any

from ribseg.errors import ConfigError
from ribseg.files import missing_ids
from ribseg.interop import convert_maps, map_reader
from ribseg.pipeline.recipe.context import Context
from ribseg.store.artefact import Artefact, folder_digest
from ribseg.store.stage import Stage


class ImportedStage(Stage):
    """Converts the files of another program to localization maps of all images."""

    name = "imported"
    parts = ("imported",)

    def settings(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """The settings, with a digest of the files instead of their folder."""
        folder = cfg["imported"]["folder"]
        return super().settings(cfg) | {"files": None if folder is None else folder_digest(folder)}

    def data(self, context: Context) -> str:
        """All images."""
        return context.data.fingerprint(masks=False)

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether all maps exist."""
        return not missing_ids(artefact.folder / "maps", context.data.all_ids, ".npz")

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Converts the missing maps, in the first process."""
        cfg = context.cfg.imported

        def convert() -> None:
            for folder in context.data.mapped:
                target = artefact.folder / "maps"
                convert_maps(cfg.folder, target, folder, cfg.layout, context.cfg.progress)

        context.on_first(convert)
        return {"images": len(context.data.all_ids)}


def check_imported(context: Context) -> None:
    """Checks that the files exist, without reading them.

    Raises:
        RibsegError: a setting or files are missing.
    """
    cfg = context.cfg.imported
    if not context.will_run(ImportedStage.name):
        return
    if cfg.folder is None:
        raise ConfigError("run=[imported,...] needs imported.folder=PATH with the maps of another program")
    for folder in context.data.mapped:
        map_reader(cfg.folder, folder, cfg.layout)
