"""Segments images. Scales, flip and CRF are those of the checkpoint unless given."""

import argparse
from pathlib import Path
from typing import Any

from ribseg.commands.files import each_image, targets_of


def add_options(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = command.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of images")
    add("--checkpoint", required=True, type=Path, help="segmenter.safetensors of a segmenter stage")
    add("--out", required=True, type=Path, help="folder for <image name>.png, palette PNGs of class ids")
    add("--scales", nargs="+", type=float, help="published: 0.5 0.75 1")
    add("--flip", action=argparse.BooleanOptionalAction, default=None, help="average with the mirror image")
    add("--crf", action=argparse.BooleanOptionalAction, default=None, help="the published dense CRF, or none")
    add("--tile", type=int, help="split images with a longer side than this into tiles")
    add("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    add("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    """Segments the images; lists those that failed at the end."""
    from ribseg.data.io.masks import write_class_names, write_mask
    from ribseg.memory import usable_device
    from ribseg.models.inference import PUBLISHED_CRF, predict
    from ribseg.models.load import load_segmenter

    targets = targets_of(options.images, options.out, ".png")
    segmenter = load_segmenter(options.checkpoint, usable_device(options.device))
    given: dict[str, Any] = {"tile": options.tile, "scales": options.scales, "flip": options.flip}
    settings = {name: value for name, value in given.items() if value is not None}  # else the checkpoint's
    if options.crf is not None:
        settings["crf"] = PUBLISHED_CRF if options.crf else None

    def one(target: Path, image: Path) -> str:
        mask = predict(image, segmenter, **settings)
        assert not isinstance(mask, list)  # one image, one mask
        write_mask(target, mask, segmenter.palette)
        return ""

    done, failure = f"masks written to {options.out}", "could not be segmented"
    write_class_names(options.out, segmenter.classes)
    each_image(targets, one, "Segmenting", done, failure, options.quiet)
