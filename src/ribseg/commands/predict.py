"""Segments images. Scales, flip and CRF are those of the checkpoint unless given."""

import argparse
from itertools import compress
from pathlib import Path
from typing import Any

from ribseg.commands.files import each_image, targets_of
from ribseg.errors import ConfigError


def add_options(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = command.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of images")
    add("--checkpoint", required=True, type=Path, help="segmenter.safetensors of a segmenter stage")
    add("--out", required=True, type=Path, help="folder for <image name>.png, palette PNGs of class ids")
    labels = "file or folder with the classes of every image, as data.labels; no others are predicted"
    add("--labels", type=Path, metavar="PATH", help=labels)
    masks = "folder of masks <image name>.png that the images have already; they take part with --trust"
    add("--masks", type=Path, metavar="DIR", help=masks)
    add("--trust", type=float, help="weight of --masks, above 0.5 they stay, before a CRF; default: 0.45")
    add("--scales", nargs="+", type=float, help="published: 0.5 0.75 1")
    add("--flip", action=argparse.BooleanOptionalAction, default=None, help="average with the mirror image")
    add("--crf", action=argparse.BooleanOptionalAction, default=None, help="the published dense CRF, or none")
    add("--tile", type=int, help="split images with a longer side than this into tiles")
    add("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    add("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    """Segments the images; lists those that failed at the end."""
    from ribseg.data.io.label_forms import read_labels
    from ribseg.data.io.masks import check_class_names, read_mask, write_class_names, write_mask
    from ribseg.memory import usable_device
    from ribseg.models.inference import PUBLISHED_CRF, predict
    from ribseg.models.load import load_segmenter

    targets = targets_of(options.images, options.out, ".png")
    segmenter = load_segmenter(options.checkpoint, usable_device(options.device))
    given = {name: getattr(options, name) for name in ("tile", "scales", "flip", "trust")}
    # Else the checkpoint's.
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.crf is not None:
        settings["crf"] = PUBLISHED_CRF if options.crf else None

    if options.masks is not None:
        if options.masks.resolve() == options.out.resolve():
            raise ConfigError(f"{options.out} is the folder of the given masks; choose another with --out")
        check_class_names(options.masks, segmenter.classes)
        if not any(options.masks.glob("*.png")):
            found = sorted(path.name for path in options.masks.glob("*/")) or "none"
            raise ConfigError(f"expected masks <image name>.png in {options.masks}; found folders: {found}")
    known: dict[str, list[str]] = {}
    if options.labels:
        ids = [image.stem for image in targets.values()]
        matrix, source = read_labels(options.labels, ids, segmenter.classes)
        print(f"labels: {source}")
        rows = zip(ids, matrix, strict=True)
        known = {image_id: list(compress(segmenter.classes, row)) for image_id, row in rows}

    def one(target: Path, image: Path) -> str:
        earlier = None if options.masks is None else read_mask(options.masks / f"{image.stem}.png")
        mask = predict(image, segmenter, labels=known.get(image.stem), masks=earlier, **settings)
        assert not isinstance(mask, list)  # one image, one mask
        write_mask(target, mask, segmenter.palette)
        return ""

    done, failure = f"masks written to {options.out}", "could not be segmented"
    write_class_names(options.out, segmenter.classes)
    each_image(targets, one, "Segmenting", done, failure, options.quiet)
