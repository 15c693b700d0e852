"""Writes masks with their photographs, or a segmenter, for other programs.

The masks are those of a run (its pseudo masks, or a segmenter's), or a folder of PNGs beside --images. Of a
segmenter.safetensors it writes one file that takes uint8 RGB photographs (N, H, W, 3) of any size.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ribseg.errors import ConfigError
from ribseg.files import read_lines

if TYPE_CHECKING:
    from ribseg.interop.exports import MaskSet

FORMS = {
    "mmseg": "mmsegmentation: img_dir, ann_dir, metainfo.py",
    "nnunet": "nnU-Net v2: imagesTr, labelsTr, dataset.json",
    "hf": "Hugging Face datasets: imagefolder with a column for the mask",
    "coco": "COCO's instances JSON with run lengths",
    "labelme": "labelme's JSON with polygons",
    "voc": "VOC as CVAT and Datumaro have it: labelmap.txt, RGB masks",
}

PROGRAMS = {
    "onnx": "a segmenter for onnxruntime (extra onnx)",
    "pt2": "a segmenter as a program of torch.export",
    "torchscript": "a segmenter as TorchScript",
}


def add_options(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = command.add_argument
    add("masks", type=Path, help="folder of a run, or of masks <id>.png; or a segmenter.safetensors")
    add("out", type=Path, help="new folder, or that of an interrupted call; of a segmenter, the file")
    forms = "; ".join(f"{name}: {text}" for name, text in (FORMS | PROGRAMS).items())
    add("--to", required=True, choices=(*FORMS, *PROGRAMS), metavar="FORM", help=forms)
    add(
        "--of",
        default="pseudo_masks",
        help="of a run: pseudo_masks (the last variant), or segmenter_rib, ...",
    )
    add("--split", help="of a run: the list of images, default: all that have masks; else a name")
    add("--images", type=Path, help="folder of the photographs, for a folder of masks")
    add("--classes", type=Path, help="file of class names; default: classes.txt beside or above the masks")
    add("--instances", action="store_true", help="COCO: an annotation for each connected part")
    add("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    """Writes the masks, and says what the form cannot."""
    if options.to in PROGRAMS:
        return write_program(options.masks, options.out, options.to)
    from ribseg.interop.exports import export_masks, mask_set

    if (options.masks / "results.json").is_file():
        masks = of_run(options.masks, options.of, options.split)
    elif options.images is None:
        raise ConfigError(f"{options.masks} is no run: give the folder of the photographs, --images FOLDER")
    else:
        names = None if options.classes is None else read_lines(options.classes)
        masks = mask_set(options.masks, options.images, names, options.split or "train")
    progress = False if options.quiet else "auto"
    lost = export_masks(options.to, masks, options.out, options.instances, progress)
    print(f"{len(masks.items)} images written to {options.out}")
    for what, number in lost.items():
        print(f"  {number} {what}")


def write_program(segmenter: Path, out: Path, to: str) -> None:
    """Writes a segmenter as a program.

    Raises:
        ConfigError: the file exists, or is no segmenter.
    """
    from ribseg.models.load import load_segmenter
    from ribseg.models.program import save_program

    if out.exists():
        raise ConfigError(f"{out} exists already: choose another file")
    save_program(out, load_segmenter(segmenter), to)
    print(
        f"{out}: takes uint8 RGB (N, H, W, 3), gives probabilities and ids; equal to the model at five sizes"
    )


def of_run(folder: Path, stage: str, split: str | None) -> "MaskSet":
    """The masks of a run.

    Args:
        folder: of the run.
        stage: "pseudo_masks", or "segmenter_" and what it learnt from.
        split: the list of images; None for all with masks.

    Raises:
        ConfigError: the run has no such masks.
    """
    from ribseg.interop.exports import Masked, MaskSet
    from ribseg.pipeline.plan import reopened
    from ribseg.pipeline.report.finished import open_runs

    (found,) = open_runs([folder.absolute()])
    with found.inside():
        data = reopened(found, folder).data
        name = stage.replace("segmenter_", "segmenter_test_")
        if name not in found.artefacts:
            kinds = ("pseudo_masks", "segmenter_test")
            known = [key.replace("_test", "") for key in found.artefacts if key.startswith(kinds)]
            raise ConfigError(f"the run has no masks of {stage}; there are {', '.join(known) or 'none'}")
        place = found.artefacts[name].folder.absolute()
        folders = {each.split: each for each in data.splits if split in (None, each.split)}
        if not folders:
            raise ConfigError(
                f"the run has no split {split!r}; there are {[each.split for each in data.splits]}"
            )
        items: dict[str, Masked] = {}
        variant = found.results["pseudo_masks"]["variant"] if name == "pseudo_masks" else None
        for part, dataset in folders.items():
            for image_id in dataset.ids:
                image, mask = dataset.image_path(image_id), place / (variant or part) / f"{image_id}.png"
                if image is not None and mask.is_file():
                    items[image_id] = Masked(image_id, image.absolute(), mask)
    return MaskSet(data.classes, list(items.values()), split or "train")
