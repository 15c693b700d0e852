"""`ribseg convert`: maps, masks and labels from and to other programs' formats."""

import argparse
from pathlib import Path
from typing import Any

from ribseg.data.io.files import read_lines
from ribseg.data.voc import VOC_CLASSES, VOCFolder
from ribseg.errors import RibsegError
from ribseg.interop.convert import Layout, convert_maps
from ribseg.interop.irn import convert_irn_maps, write_irn_maps
from ribseg.interop.labels import convert_labels
from ribseg.interop.psa import convert_psa_maps

LAYOUTS: dict[str, Layout] = {"pngs-to-ribseg": "png", "masks-to-ribseg": "masks"}
LABELS = "labels-to-csv"


def add_command(commands: Any) -> None:
    """Adds the command to a parser's commands."""
    text = "Converts maps, masks and labels from and to other programs' formats."
    parser = commands.add_parser(
        "convert", prog="ribseg convert", help="convert maps, masks and labels", description=text
    )
    parser.set_defaults(run=run)
    formats = parser.add_subparsers(dest="formats", required=True)
    for name, text in (
        ("irn-to-ribseg", ".npy dictionaries of IRN, RIB or AdvCAM (keys, cam, high_res) to .npz maps"),
        ("amn-to-ribseg", "the same of AMN, whose first map is the background's, to .npz maps"),
        ("psa-to-ribseg", ".npy dictionaries of PSA, ACR or S2C (class index -> map) to .npz maps"),
    ):
        command = _add_formats(formats, name, text)
        number = "number of classes without background"
        command.add_argument("--classes", type=int, required=True, help=number)
    _add_formats(formats, "ribseg-to-irn", ".npz maps to IRN's .npy dictionaries")
    for name, text in (
        ("pngs-to-ribseg", "gray PNGs <id>/<class name>.png or <id>_<class name>.png to .npz maps"),
        ("masks-to-ribseg", "masks <id>.png that hold class ids to .npz maps of ones and zeros"),
    ):
        command = _add_formats(formats, name, text)
        root = "data set in VOC layout, for ids, classes and sizes"
        command.add_argument("--root", required=True, help=root)
        command.add_argument("--split", required=True, help="its list of images, e.g. train")
    text = "cls_labels.npy of PSA, IRN and their relatives to a CSV file for data.labels"
    labels = formats.add_parser(LABELS, help=text, description=text)
    labels.add_argument("source", help="the .npy file")
    labels.add_argument("target", help="the CSV file to write; must not be there yet")
    labels.add_argument("--names", help="file with one class name a line, in order; default: VOC's twenty")
    labels.set_defaults(quiet=True)


def run(options: argparse.Namespace) -> None:
    """Converts a folder, and goes on where it was interrupted."""
    try:
        written = _converted(options)
    except KeyboardInterrupt as error:
        again = "interrupted. Give the same command again: it goes on where it stopped."
        raise RibsegError(again) from error
    if options.formats == LABELS:
        print(f"labels of {written} images written to {options.target}")
    else:
        print(f"{written} files written to {options.target}; what was there already is kept.")


def _converted(options: argparse.Namespace) -> int:
    source, target, progress = options.source, options.target, not options.quiet
    if options.formats == LABELS:
        names = read_lines(Path(options.names)) if options.names else VOC_CLASSES
        return convert_labels(source, target, names)
    if options.formats in ("irn-to-ribseg", "amn-to-ribseg"):
        background_first = options.formats == "amn-to-ribseg"
        return convert_irn_maps(source, target, options.classes, progress, background_first)
    if options.formats == "psa-to-ribseg":
        return convert_psa_maps(source, target, options.classes, progress)
    if options.formats == "ribseg-to-irn":
        return write_irn_maps(source, target, progress)
    images = VOCFolder(options.root, options.split)
    return convert_maps(source, target, images, LAYOUTS[options.formats], progress)


def _add_formats(formats: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = formats.add_parser(name, help=text, description=text)
    command.add_argument("source", help="folder to read")
    command.add_argument("target", help="folder to write; files that are there already are kept")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    return command
