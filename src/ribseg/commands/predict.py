"""`ribseg predict`: masks of images by a trained segmenter."""

import argparse
from pathlib import Path
from typing import Any

from ribseg.commands.files import each_image, targets_of
from ribseg.data.io.masks import write_mask
from ribseg.memory import usable_device
from ribseg.models.inference import PUBLISHED_CRF, predict
from ribseg.models.segmenter import load_segmenter
from ribseg.progress import track


def run(options: argparse.Namespace) -> None:
    """Segments the images; lists those that failed at the end."""
    targets = targets_of(options.images, options.out, ".png")
    segmenter = load_segmenter(options.checkpoint, usable_device(options.device))
    settings = _settings(options)

    def one(target: Path, image: Path) -> None:
        mask = predict(image, segmenter, **settings)
        assert not isinstance(mask, list)  # one image, one mask
        write_mask(target, mask, segmenter.palette)

    bar = track(targets.items(), "Segmenting", show=not options.quiet)
    each_image(bar, one, len(targets), f"masks written to {options.out}", "could not be segmented")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The inference settings of the command line; others are those of the checkpoint."""
    given: dict[str, Any] = {"tile": options.tile, "scales": options.scales, "flip": options.flip}
    chosen = {name: value for name, value in given.items() if value is not None}
    if options.crf is not None:
        chosen["crf"] = PUBLISHED_CRF if options.crf else None
    return chosen
