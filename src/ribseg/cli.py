"""Commands: `python -m ribseg.predict IMAGE... --checkpoint segmenter.pt --out DIR`, images in, masks out."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from ribseg.data.io.masks import write_mask
from ribseg.data.voc import IMAGE_ENDINGS
from ribseg.errors import DataError, DeviceMemoryError, RibsegError, shortened
from ribseg.methods.inference import PUBLISHED_CRF, predict
from ribseg.models.segmenter import load_segmenter


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; what a user can put right is one message, and exit status 1.

    An image that cannot be read, or not be segmented, does not keep the others from being written; all such
    images are named at the end. An output folder that cannot be written to ends the command at once.
    """
    options = _parser().parse_args(arguments)
    failed: dict[Path, str] = {}
    try:
        images = _run(options, failed)
    except RibsegError as error:
        sys.exit(_message(str(error), failed))
    except KeyboardInterrupt:
        sys.exit(_message("interrupted; the masks that are written are whole", failed))
    print(f"{images - len(failed)} masks written to {options.out}")
    if failed:
        sys.exit(_message(f"{len(failed)} of {images} images could not be segmented", failed))


def _run(options: argparse.Namespace, failed: dict[Path, str]) -> int:
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


def _message(text: str, failed: Mapping[Path, str]) -> str:
    """The text, and every image without a mask with the reason."""
    reasons = [why if str(image) in why else f"{image}: {why}" for image, why in failed.items()]
    return "\n  ".join([f"ribseg: {text}", *map(shortened, reasons)])


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ribseg.predict",
        description="Segments images. Scales, mirror image and CRF are those of the checkpoint unless given.",
    )
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
    return parser
