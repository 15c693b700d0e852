"""The export stage: an archive for VOC's evaluation server, and the segmenter as a torch.export program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ribseg.checks import check_switch
from ribseg.data.base import BaseDataset
from ribseg.data.check.dataset import check_dataset
from ribseg.errors import ConfigError
from ribseg.interop.voc_server import check_voc_archive, write_voc_archive
from ribseg.models.program import save_program
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.stages.segmenter import SegmenterStage, tested_folders
from ribseg.pipeline.stages.segmenter_scores import SegmenterTestStage, tested_segmenter, write_masks
from ribseg.store.artefact import Artefact
from ribseg.store.settings import counted, setting
from ribseg.store.stage import Stage

PROGRAM = "segmenter.pt2"
SERVER_SPLITS = ("val", "test")  # that the server accepts


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """The settings `export`."""

    source: str = setting()
    split: str = setting()
    program: bool = setting(check_switch, default=False)


class ExportStage(Stage[Session]):
    """Segments a split, which needs no labels or masks, and packs and checks the archive of its masks.

    Args:
        session: of the run.
        segmenters: source -> stage that trains its segmenter.
        tests: source -> stage that tests it.
    """

    name = "export"

    def __init__(
        self,
        session: Session,
        segmenters: Mapping[str, SegmenterStage],
        tests: Mapping[str, SegmenterTestStage],
    ) -> None:
        super().__init__(session)
        self.cfg, self.segmenters, self.tests = session.settings[ExportSettings], segmenters, tests

    def wanted(self) -> bool:
        """Only if the run selects it, because the split may not exist."""
        return self.name in self.session.run.chosen

    def inputs(self) -> Sequence[Stage[Session]]:
        """The segmenter.

        Raises:
            ConfigError: there is none of this source.
        """
        if self.cfg.split not in SERVER_SPLITS or self.cfg.source not in self.segmenters:
            raise ConfigError(
                f"expected export.split out of {', '.join(SERVER_SPLITS)}, which VOC's server accepts, and "
                f"export.source out of {', '.join(self.segmenters)}; got {self.cfg.split} and "
                f"{self.cfg.source}"
            )
        return [self.segmenters[self.cfg.source]]

    def settings(self) -> dict[str, Any]:
        """Its own, and those of the segmenter."""
        segmenter = counted(self.segmenters[self.cfg.source].cfg)
        return self.session.counted("trainer", "tf32") | {"export": counted(self.cfg), "segmenter": segmenter}

    def folder(self) -> BaseDataset:
        """The exported images, without labels."""
        return self.session.data.open(self.cfg.split, labels="none")

    def data(self) -> str:
        """The exported images."""
        return self.folder().fingerprint(masks=False)

    def complete(self, artefact: Artefact) -> bool:
        """Whether the archive and the program exist."""
        program = not self.cfg.program or (artefact.folder / PROGRAM).is_file()
        return self.archive(artefact).is_file() and program

    def archive(self, artefact: Artefact) -> Path:
        """The file of the archive."""
        return artefact.folder / f"comp6_{self.cfg.split}_cls.tar.gz"

    def check(self) -> None:
        """Checks the images."""
        progress = self.session.progress
        self.session.group.on_first(lambda: check_dataset(self.folder(), progress=progress))

    def work(self, target: Artefact) -> dict[str, Any]:
        """Segments the missing images, then packs and checks the archive in the first process."""
        cfg, folder, say = self.cfg, self.folder(), self.session.say
        segmenter = tested_segmenter(self.segmenters[cfg.source])
        place, test = target.folder / "masks", self.tests[cfg.source]
        tested = test.name in self.session.run.planned and test.artefact.finished
        if tested and cfg.split in tested_folders(self.session):  # its masks are the same ones
            place = test.artefact.folder / cfg.split
        write_masks(self.session, target, segmenter, folder, place)
        archive = self.archive(target)

        def pack() -> None:
            write_voc_archive(archive, place, folder.ids, cfg.split)
            sizes = {image_id: folder.size(image_id) for image_id in folder.ids}
            check_voc_archive(archive, sizes, cfg.split, folder.num_classes)
            say(f"  {len(sizes)} masks, all checked: {archive}")
            if cfg.program:
                save_program(target.folder / PROGRAM, segmenter, "pt2")
                say(f"  the segmenter as a torch.export program: {target.folder / PROGRAM}")

        self.session.group.on_first(pack)
        return {"archive": str(archive), "split": cfg.split, "source": cfg.source, "images": len(folder)}
