"""The export stage: an archive for VOC's evaluation server, and the segmenter as a torch.export program."""

from pathlib import Path
from typing import Any

from ribseg.data.base import BaseDataset
from ribseg.data.check.dataset import check_dataset
from ribseg.errors import ConfigError
from ribseg.interop.voc_server import check_voc_archive, write_voc_archive
from ribseg.models.program import export_program, save_program
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.stages.chains import segmenter_name, segmenter_sources, segmenter_test_name
from ribseg.pipeline.stages.segmenter import tested_folders
from ribseg.pipeline.stages.segmenter_scores import tested_segmenter, write_masks
from ribseg.store.artefact import Artefact
from ribseg.store.stage import Stage

PROGRAM = "segmenter.pt2"
SERVER_SPLITS = ("val", "test")  # that the server accepts


class ExportStage(Stage):
    """Segments a split, which needs no labels or masks, and packs and checks the archive of its masks."""

    name = "export"
    parts = ("export", "segmenter", "trainer", "tf32")

    def wanted(self, context: Context) -> bool:
        """Only if the run selects it, because the split may not exist."""
        return self.name in context.cfg.run

    def required(self, context: Context) -> tuple[str, ...]:
        """The segmenter."""
        return (segmenter_name(context.cfg.export.source),)

    def data(self, context: Context) -> str:
        """The exported images."""
        return exported_folder(context).fingerprint(masks=False)

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether the archive and the program exist."""
        program = not context.cfg.export.program or (artefact.folder / PROGRAM).is_file()
        return archive_path(context, artefact).is_file() and program

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Segments the missing images, then packs and checks the archive in the first process."""
        cfg, folder = context.cfg.export, exported_folder(context)
        segmenter = tested_segmenter(context, cfg.source)
        place = tested_masks(context) or artefact.folder / "masks"
        write_masks(context, artefact, segmenter, folder, place)
        archive = archive_path(context, artefact)

        def pack() -> None:
            write_voc_archive(archive, place, folder.ids, cfg.split)
            sizes = {image_id: folder.size(image_id) for image_id in folder.ids}
            check_voc_archive(archive, sizes, cfg.split, folder.num_classes)
            context.console.say(f"  {len(sizes)} masks, all checked: {archive}")
            if cfg.program:
                save_program(artefact.folder / PROGRAM, export_program(segmenter))
                context.console.say(f"  the segmenter as a torch.export program: {artefact.folder / PROGRAM}")

        context.on_first(pack)
        return {"archive": str(archive), "split": cfg.split, "source": cfg.source, "images": len(folder)}


def archive_path(context: Context, artefact: Artefact) -> Path:
    """The file of the archive."""
    return artefact.folder / f"comp6_{context.cfg.export.split}_cls.tar.gz"


def exported_folder(context: Context) -> BaseDataset:
    """The images, without labels."""
    return context.data.open(context.cfg.export.split, labels="none")


def tested_masks(context: Context) -> Path | None:
    """The folder of the segmenter test's masks, if it has segmented this split with these settings."""
    cfg = context.cfg
    artefact = context.artefacts.get(segmenter_test_name(cfg.export.source))
    if artefact is None or not artefact.finished or cfg.export.split not in tested_folders(context):
        return None
    return artefact.folder / cfg.export.split


def check_export(context: Context) -> None:
    """Checks the settings and images of the export before any training.

    Raises:
        RibsegError: an unknown source or split, or images that cannot be read.
    """
    cfg, sources = context.cfg.export, segmenter_sources(context.cfg)
    if cfg.split not in SERVER_SPLITS or cfg.source not in sources:
        raise ConfigError(
            f"expected export.split out of {', '.join(SERVER_SPLITS)}, which VOC's server accepts, and "
            f"export.source out of {', '.join(sources)}; got {cfg.split} and {cfg.source}"
        )
    context.on_first(lambda: check_dataset(exported_folder(context), progress=context.cfg.progress))
