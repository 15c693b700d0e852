"""The stage that imports maps or masks of other programs, to be refined and evaluated."""

from dataclasses import dataclass
from typing import Any

from ribseg.errors import ConfigError
from ribseg.files import missing_ids
from ribseg.interop import check_imported, convert_maps, map_reader
from ribseg.pipeline.recipe.session import Session
from ribseg.store.artefact import Artefact
from ribseg.store.settings import counted, setting
from ribseg.store.stage import Stage


@dataclass(frozen=True, kw_only=True)
class ImportedSettings:
    """The settings `imported`."""

    folder: str | None = setting(neutral="the digest of its files counts instead")
    layout: Any = setting()  # see `map_reader`


class ImportedStage(Stage[Session]):
    """Converts the files of another program to localization maps of all images."""

    name = "imported"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.cfg = session.settings[ImportedSettings]

    def settings(self) -> dict[str, Any]:
        """Its own, with a digest of the files instead of their folder."""
        files = None if self.cfg.folder is None else self.session.contents.of_folder(self.cfg.folder)
        return {"imported": counted(self.cfg) | {"files": files}}

    def data(self) -> str:
        """All images."""
        return self.session.data.fingerprint(masks=False)

    def complete(self, artefact: Artefact) -> bool:
        """Whether all maps exist."""
        return not missing_ids(artefact.folder / "maps", self.session.data.all_ids, ".npz")

    def check(self) -> None:
        """Checks that the files exist, without reading them."""
        if self.session.run.computes(self):
            if self.cfg.folder is None:
                raise ConfigError(
                    "run=[imported,...] needs imported.folder=PATH with the maps of another program"
                )
            for folder in self.session.data.mapped:
                map_reader(self.cfg.folder, folder, self.cfg.layout)

    def work(self, target: Artefact) -> dict[str, Any]:
        """Converts the missing maps, in the first process."""

        def convert() -> None:
            for folder in self.session.data.mapped:
                maps, progress = target.folder / "maps", self.session.progress
                convert_maps(str(self.cfg.folder), maps, folder, self.cfg.layout, progress)
                check_imported(maps, folder)

        self.session.group.on_first(convert)
        return {"images": len(self.session.data.all_ids)}
