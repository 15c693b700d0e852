"""Converts maps, masks and labels from and to other programs' formats."""

import argparse
from pathlib import Path
from typing import Any

from ribseg.errors import RibsegError
from ribseg.files import read_lines

ARRAYS = {
    "irn-to-ribseg": ".npy dictionaries of IRN, RIB or AdvCAM (keys, cam, high_res) to .npz maps",
    "amn-to-ribseg": "the same of AMN, whose first map is that of the background, to .npz maps",
    "psa-to-ribseg": ".npy dictionaries of PSA, ACR or S2C (class index -> map) to .npz maps",
}
IMAGES = {
    "pngs-to-ribseg": "gray PNGs <id>/<class name>.png or <id>_<class name>.png to .npz maps",
    "masks-to-ribseg": "masks <id>.png that hold class ids to .npz maps of ones and zeros",
}
LABELS, MASKS = "labels-to-csv", "masks-from"
FORMS = {
    "voc": "folder with labelmap.txt and SegmentationClass/ in its colours: CVAT, Datumaro",
    "labelme": "folder of labelme's JSON",
    "coco": "COCO's instances JSON",
    "nnunet": "nnU-Net's raw data set",
    "gray": "folder of PNGs of numbers beside classes.txt, id2label.json or Roboflow's _classes.csv",
}


def add_options(command: argparse.ArgumentParser) -> None:
    """Adds a subcommand for each format."""
    formats = command.add_subparsers(dest="formats", required=True)
    for name, text in ARRAYS.items():
        number = "number of classes without background"
        _add_format(formats, name, text).add_argument("--classes", type=int, required=True, help=number)
    _add_format(formats, "ribseg-to-irn", ".npz maps to IRN's .npy dictionaries")
    for name, text in IMAGES.items():
        add = _add_format(formats, name, text).add_argument
        add("--root", required=True, help="data set in VOC layout, for ids, classes and sizes")
        add("--split", required=True, help="name of its list of images, e.g. train")
    text = (
        "labels to a CSV file for data.labels: cls_labels.npy of PSA, IRN and similar programs; tables, JSON "
        "and XML of label tools; lists of VOC and imagenet; a folder of images for each class"
    )
    labels = formats.add_parser(LABELS, help=text, description=text)
    labels.add_argument("source", help="the file or folder to read")
    labels.add_argument("target", help="the CSV file to write; must not exist")
    labels.add_argument("--names", help="file with one class name per line, in order; default: VOC's twenty")
    masks = _add_format(
        formats, MASKS, "masks of label tools and trainers to PNGs of class ids, with classes.txt"
    )
    told = "; ".join(f"{name}: {text}" for name, text in FORMS.items())
    masks.add_argument("--form", required=True, choices=FORMS, metavar="FORM", help=told)
    masks.add_argument("--names", help="file with one class name per line, in the order of the ids")


def _add_format(formats: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = formats.add_parser(name, help=text, description=text)
    command.add_argument("source", help="folder to read")
    command.add_argument("target", help="folder to write; existing files are kept")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    return command


def run(options: argparse.Namespace) -> None:
    """Converts a folder; existing files are kept, so that an interrupted call can be repeated."""
    try:
        print({LABELS: _labels, MASKS: _masks}.get(options.formats, _maps)(options))
    except KeyboardInterrupt as error:
        raise RibsegError("interrupted. Give the same command again to resume.") from error


def _labels(options: argparse.Namespace) -> str:
    from ribseg.data.voc import VOC_CLASSES
    from ribseg.interop.labels import convert_labels

    names = read_lines(Path(options.names)) if options.names else VOC_CLASSES
    number = convert_labels(options.source, options.target, names)
    return f"labels of {number} images written to {options.target}"


def _masks(options: argparse.Namespace) -> str:
    from ribseg.interop.mask_forms import import_masks

    names = read_lines(Path(options.names)) if options.names else None
    progress = False if options.quiet else "auto"
    number, said = import_masks(options.form, options.source, options.target, names, progress)
    return "\n".join(filter(None, [f"{number} masks and classes.txt written to {options.target}", said]))


def _maps(options: argparse.Namespace) -> str:
    from ribseg.data.voc import VOCFolder
    from ribseg.interop.convert import convert_arrays, convert_maps, write_irn_maps

    name, places, progress = options.formats, (options.source, options.target), not options.quiet
    if name == "ribseg-to-irn":
        written = write_irn_maps(*places, progress)
    elif name in ARRAYS:
        written = convert_arrays(*places, options.classes, name.removesuffix("-to-ribseg"), progress)
    else:
        images = VOCFolder(options.root, options.split)
        written = convert_maps(*places, images, "png" if name == "pngs-to-ribseg" else "masks", progress)
    return f"{written} files written to {options.target}; existing files are kept."
