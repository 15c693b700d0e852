"""The command `ribseg`: trains, checks data, segments images, converts maps, masks and labels.

`python -m ribseg.predict` and `python -m ribseg.interop` are its sub-commands `predict` and `convert`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from ribseg import __version__
from ribseg.data.io.files import read_lines
from ribseg.data.io.masks import write_mask
from ribseg.data.voc import IMAGE_ENDINGS, VOC_CLASSES, VOCFolder
from ribseg.errors import DataError, DeviceMemoryError, RibsegError, shortened
from ribseg.interop.convert import Layout, convert_maps
from ribseg.interop.irn import convert_irn_maps, write_irn_maps
from ribseg.interop.labels import convert_labels
from ribseg.interop.psa import convert_psa_maps
from ribseg.methods.inference import PUBLISHED_CRF, predict
from ribseg.models.segmenter import load_segmenter

TRAIN = "train"
LABELS = "labels-to-csv"
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
    """Segments images, and names all that could not be segmented at the end.

    Such an image does not keep the others from being written; an output folder that cannot be written to ends
    the command at once.
    """
    failed: dict[Path, str] = {}
    try:
        images = _segment(options, failed)
    except (RibsegError, KeyboardInterrupt) as error:
        text = str(error) or "interrupted; the masks that are written are whole"
        raise RibsegError(_with_reasons(text, failed)) from error
    print(f"{images - len(failed)} masks written to {options.out}")
    if failed:
        raise DataError(_with_reasons(f"{len(failed)} of {images} images could not be segmented", failed))


def _segment(options: argparse.Namespace, failed: dict[Path, str]) -> int:
    """Segments the images and returns their number; enters in `failed` why an image has no mask."""
    targets = _targets(options.images, options.out)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    segmenter = load_segmenter(options.checkpoint, device)
    settings = _settings(options)
    for target, image in track(targets.items(), "Segmenting", disable=options.quiet):
        try:
            mask = predict(image, segmenter, **settings)
        except (DataError, DeviceMemoryError) as error:
            failed[image] = str(error)
            continue
        assert not isinstance(mask, list)  # one image, one mask
        write_mask(target, mask, segmenter.palette)
    return len(targets)


def _with_reasons(text: str, failed: Mapping[Path, str]) -> str:
    """The text, and every image without a mask with the reason."""
    reasons = [why if str(image) in why else f"{image}: {why}" for image, why in failed.items()]
    return "\n  ".join([text, *map(shortened, reasons)])


def _targets(images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """What is written -> what is read; folders stand for their images."""
    targets: dict[Path, Path] = {}
    for path in _files(images):
        target = folder / f"{path.stem}.png"
        if target in targets:
            raise DataError(f"{targets[target]} and {path} would both become {target}; give them one by one")
        if target.resolve() == path.resolve():
            raise DataError(f"{target} would replace the image itself; choose another folder with --out")
        targets[target] = path
    return targets


def _files(images: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in images:
        files += _images_in(path) if path.is_dir() else [path]
    return files


def _images_in(folder: Path) -> list[Path]:
    """All images of a folder, also two of one name (a.jpg and a.png), of which `_targets` will complain."""
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDINGS and p.is_file())
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror or error}") from error
    if not found:
        raise DataError(f"the folder {folder} holds no images ({', '.join(IMAGE_ENDINGS)})")
    return found


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
    if options.formats == LABELS:
        print(f"labels of {written} images written to {options.target}")
    else:
        print(f"{written} files written to {options.target}; what was there already is kept.")


def _converted(options: argparse.Namespace) -> int:
    source, target, progress = options.source, options.target, not options.quiet
    if options.formats == LABELS:
        return convert_labels(
            source, target, read_lines(Path(options.names)) if options.names else VOC_CLASSES
        )
    if options.formats in ("irn-to-ribseg", "amn-to-ribseg"):
        background_first = options.formats == "amn-to-ribseg"
        return convert_irn_maps(source, target, options.classes, progress, background_first)
    if options.formats == "psa-to-ribseg":
        return convert_psa_maps(source, target, options.classes, progress)
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
    add("--checkpoint", required=True, type=Path, help="segmenter.pt of a segmenter stage")
    add("--out", required=True, type=Path, help="folder for <image name>.png, palette PNGs of class ids")
    add("--scales", nargs="+", type=float, help="published: 0.5 0.75 1")
    add("--flip", action=argparse.BooleanOptionalAction, default=None, help="look at the mirror image, too")
    add("--crf", action=argparse.BooleanOptionalAction, default=None, help="the published dense CRF, or none")
    add("--tile", type=int, help="cut images with a longer side than this into tiles")
    add("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    add("--quiet", action="store_true", help="no progress bar")


def _add_convert(commands: Any) -> None:
    text = "Converts maps, masks and labels from and to other programs' formats."
    parser = commands.add_parser(
        "convert", prog="ribseg convert", help="convert maps, masks and labels", description=text
    )
    parser.set_defaults(run=_convert)
    formats = parser.add_subparsers(dest="formats", required=True)
    for name, text in (
        ("irn-to-ribseg", ".npy dictionaries of IRN, RIB or AdvCAM (keys, cam, high_res) to .npz maps"),
        ("amn-to-ribseg", "the same of AMN, whose first map is the background's, to .npz maps"),
        ("psa-to-ribseg", ".npy dictionaries of PSA, ACR or S2C (class index -> map) to .npz maps"),
    ):
        command = _add_formats(formats, name, text)
        command.add_argument(
            "--classes", type=int, required=True, help="number of classes without background"
        )
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


def _add_formats(formats: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = formats.add_parser(name, help=text, description=text)
    command.add_argument("source", help="folder to read")
    command.add_argument("target", help="folder to write; files that are there already are kept")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    return command
