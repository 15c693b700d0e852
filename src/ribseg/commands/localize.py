"""`ribseg localize`: figures, maps and masks of single images."""

import argparse
from pathlib import Path

from rich.console import Console

from ribseg.commands.files import each_image, targets_of
from ribseg.data.io.images import read_image
from ribseg.data.io.maps import LocalizationMaps
from ribseg.data.io.masks import write_mask
from ribseg.files import atomic_write
from ribseg.pipeline.localize import Localizer
from ribseg.plot import localization_figure, png_of, steps_figure
from ribseg.progress import track


def run(options: argparse.Namespace) -> None:
    """Localizes the images; lists those that failed at the end."""
    targets = targets_of(options.images, options.out, ".png")
    localizer = Localizer(
        options.classifier, options.method, options.references, overrides=options.set, device=options.device
    )
    console = Console(quiet=options.quiet)

    def one(target: Path, image: Path) -> None:
        maps = _localized(localizer, options, target, image)
        found = ", ".join(maps.names) or "no class"
        console.print(f"{image.name}: {found}", highlight=False, markup=False)

    bar = track(targets.items(), "Localizing", show=not options.quiet, console=console)
    each_image(bar, one, len(targets), f"images localized in {options.out}", "could not be localized")


def _localized(
    localizer: Localizer, options: argparse.Namespace, target: Path, image: Path
) -> LocalizationMaps:
    """Writes the files of an image; returns its maps."""
    pixels = read_image(image)
    if options.steps:
        series = localizer.trace(pixels, options.labels, options.top, image.stem)
        maps = series[-1]
        strip = steps_figure(pixels, series, options.threshold)
        atomic_write(target.with_name(f"{target.stem}_steps.png"), png_of(strip))
    else:
        maps = localizer(pixels, options.labels, options.top, image.stem)
    maps.save(target.with_suffix(".npz"))
    write_mask(target.with_name(f"{target.stem}_mask.png"), maps.mask(options.threshold))
    atomic_write(target, png_of(localization_figure(pixels, maps, options.threshold)))
    return maps
