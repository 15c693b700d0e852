"""The command `ribseg`: trains, localizes, checks data, segments images, converts maps and masks.

`python -m ribseg.predict` and `python -m ribseg.interop` are its sub-commands `predict` and `convert`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from ribseg import __version__
from ribseg.commands.files import each_image, targets_of
from ribseg.commands.localize import add_command as add_localize
from ribseg.data.io.masks import write_mask
from ribseg.data.voc import VOCFolder
from ribseg.errors import RibsegError
from ribseg.interop.convert import Layout, convert_maps
from ribseg.interop.irn import convert_irn_maps, write_irn_maps
from ribseg.methods.inference import PUBLISHED_CRF, predict
from ribseg.methods.memory import usable_device
from ribseg.models.segmenter import load_segmenter

TRAIN = "train"
LAYOUTS: dict[str, Layout] = {"pngs-to-ribseg": "png", "masks-to-ribseg": "masks"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; what a user can put right is one message, and exit status 1.

    Args:
        arguments: the words after `ribseg`; None for those of this process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == [TRAIN]:  # all others are Hydra's, which has a parser of its own
        from ribseg.launch import train

        return train(words[1:], [TRAIN])
    options = _parser().parse_args(words)
    try:
        options.run(options)
    except RibsegError as error:
        sys.exit(f"ribseg: {error}")


def _check(options: argparse.Namespace) -> None:
    """Looks at all files of a folder in VOC layout, as `run=[check_data]` does."""
    from ribseg.launch import train

    train(
        ["experiment=rib_folder", f"data.root={options.data}", "run=[check_data]", *options.settings], [TRAIN]
    )


def _predict(options: argparse.Namespace) -> None:
    """Segments images."""
    targets = targets_of(options.images, options.out, ".png")
    segmenter = load_segmenter(options.checkpoint, usable_device(options.device))
    settings = _settings(options)

    def one(target: Path, image: Path) -> None:
        mask = predict(image, segmenter, **settings)
        assert not isinstance(mask, list)  # one image, one mask
        write_mask(target, mask, segmenter.palette)

    bar = track(targets.items(), "Segmenting", disable=options.quiet)
    each_image(bar, one, len(targets), f"masks written to {options.out}", "could not be segmented")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says; the checkpoint decides on the rest."""
    given: dict[str, Any] = {"tile": options.tile, "scales": options.scales, "flip": options.flip}
    chosen = {name: value for name, value in given.items() if value is not None}
    if options.crf is not None:
        chosen["crf"] = PUBLISHED_CRF if options.crf else None
    return chosen


def _convert(options: argparse.Namespace) -> None:
    """Converts a folder, and goes on where it was interrupted."""
    try:
        written = _converted(options)
    except KeyboardInterrupt as error:
        again = "interrupted. Give the same command again: it goes on where it stopped."
        raise RibsegError(again) from error
    print(f"{written} files written to {options.target}; what was there already is kept.")


def _converted(options: argparse.Namespace) -> int:
    source, target, progress = options.source, options.target, not options.quiet
    if options.formats == "irn-to-ribseg":
        return convert_irn_maps(source, target, options.classes, progress)
    if options.formats == "ribseg-to-irn":
        return write_irn_maps(source, target, progress)
    images = VOCFolder(options.root, options.split)
    return convert_maps(source, target, images, LAYOUTS[options.formats], progress)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ribseg", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"ribseg {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "run an experiment: ribseg train experiment=demo, in Hydra's grammar; ribseg train --help"
    commands.add_parser(TRAIN, help=text, add_help=False)
    add_localize(commands)
    _add_check(commands)
    _add_predict(commands)
    _add_convert(commands)
    return parser


def _add_check(commands: Any) -> None:
    text = "Looks at all files of a data set: counts, sizes, labels, damage, images in two splits."
    parser = commands.add_parser("check", help="look at all files of a data set", description=text)
    parser.set_defaults(run=_check)
    parser.add_argument("data", help="folder in VOC layout")
    parser.add_argument("settings", nargs="*", help="as data.train_split=trainaug data.labels=FILE")


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        prog="ribseg predict",
        help="segment images",
        description="Segments images. Scales, mirror image and CRF are those of the checkpoint unless given.",
    )
    parser.set_defaults(run=_predict)
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of images")
    add("--checkpoint", required=True, type=Path, help="segmenter.safetensors of a segmenter stage")
    add("--out", required=True, type=Path, help="folder for <image name>.png, palette PNGs of class ids")
    add("--scales", nargs="+", type=float, help="published: 0.5 0.75 1")
    add("--flip", action=argparse.BooleanOptionalAction, default=None, help="look at the mirror image, too")
    add("--crf", action=argparse.BooleanOptionalAction, default=None, help="the published dense CRF, or none")
    add("--tile", type=int, help="cut images with a longer side than this into tiles")
    add("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    add("--quiet", action="store_true", help="no progress bar")


def _add_convert(commands: Any) -> None:
    text = "Converts folders of maps and masks from and to other programs' formats."
    parser = commands.add_parser(
        "convert", prog="ribseg convert", help="convert maps and masks", description=text
    )
    parser.set_defaults(run=_convert)
    formats = parser.add_subparsers(dest="formats", required=True)
    irn = _add_formats(
        formats, "irn-to-ribseg", ".npy dictionaries of IRN or RIB (keys, cam, high_res) to .npz maps"
    )
    irn.add_argument("--classes", type=int, required=True, help="number of classes without background")
    _add_formats(formats, "ribseg-to-irn", ".npz maps to IRN's .npy dictionaries")
    for name, text in (
        ("pngs-to-ribseg", "gray PNGs <id>/<class name>.png or <id>_<class name>.png to .npz maps"),
        ("masks-to-ribseg", "masks <id>.png that hold class ids to .npz maps of ones and zeros"),
    ):
        command = _add_formats(formats, name, text)
        root = "data set in VOC layout, for ids, classes and sizes"
        command.add_argument("--root", required=True, help=root)
        command.add_argument("--split", required=True, help="its list of images, e.g. train")


def _add_formats(formats: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = formats.add_parser(name, help=text, description=text)
    command.add_argument("source", help="folder to read")
    command.add_argument("target", help="folder to write; files that are there already are kept")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    return command
