"""`python -m ribseg.predict IMAGE... --checkpoint segmenter.pt --out DIR`: images in, palette PNGs out.

In Python, `ribseg.predict(images, checkpoint)` is the function `ribseg.inference.predict`. A package cannot
hold a function and a module of one name: importing the module would put it in the function's place. So the
module is the only holder of the name, and can be called.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.progress import track

from ribseg.data.files import scan_folder
from ribseg.data.masks import write_mask
from ribseg.data.voc import IMAGE_ENDINGS
from ribseg.errors import DataError, RibsegError
from ribseg.inference import PUBLISHED_CRF, predict
from ribseg.models.segmenter import load_segmenter


class _CallableModule(ModuleType):
    """A module that is called as the function it is named after."""

    __call__ = staticmethod(predict)


sys.modules[__name__].__class__ = _CallableModule


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; an error that a user can mend is one message, and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        written = _run(options)
    except RibsegError as error:
        sys.exit(f"ribseg: {error}")
    except KeyboardInterrupt:
        sys.exit("ribseg: interrupted; the masks that are written are whole")
    print(f"{written} masks written to {options.out}")


def _run(options: argparse.Namespace) -> int:
    targets = _targets(options.images, options.out)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    segmenter = load_segmenter(options.checkpoint, device)
    settings = _settings(options)
    for target, image in track(targets.items(), "Segmenting", disable=options.quiet):
        mask = predict(image, segmenter, **settings)
        assert not isinstance(mask, list)  # one image, one mask
        write_mask(target, mask, segmenter.palette)
    return len(targets)


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
        if not path.is_dir():
            files.append(path)
            continue
        found = [path / name for _, name in sorted(scan_folder(path, IMAGE_ENDINGS).items())]
        if not found:
            raise DataError(f"the folder {path} holds no images ({', '.join(IMAGE_ENDINGS)})")
        files += found
    return files


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


if __name__ == "__main__":
    main()
