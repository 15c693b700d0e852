"""`ribseg convert`: converts maps, masks and labels from and to other programs' formats."""

import argparse
from pathlib import Path

from ribseg.data.voc import VOC_CLASSES, VOCFolder
from ribseg.errors import RibsegError
from ribseg.files import read_lines
from ribseg.interop.convert import Layout, convert_maps
from ribseg.interop.irn import convert_irn_maps, write_irn_maps
from ribseg.interop.labels import convert_labels
from ribseg.interop.psa import convert_psa_maps

LAYOUTS: dict[str, Layout] = {"pngs-to-ribseg": "png", "masks-to-ribseg": "masks"}
LABELS = "labels-to-csv"


def run(options: argparse.Namespace) -> None:
    """Converts a folder; existing files are kept, so that an interrupted call can be repeated."""
    try:
        written = _converted(options)
    except KeyboardInterrupt as error:
        again = "interrupted. Give the same command again to resume."
        raise RibsegError(again) from error
    if options.formats == LABELS:
        print(f"labels of {written} images written to {options.target}")
    else:
        print(f"{written} files written to {options.target}; existing files are kept.")


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
