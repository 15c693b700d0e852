"""Makes saliency maps of photographs with a published network, for refine.saliency.

For every photograph NAME: OUT/NAME.png, gray, of its size. Maps that are there already are kept, if the same
network has made them. Needs pip install 'ribseg[saliency]'; docs/refinement.md names networks.
"""

import argparse
from pathlib import Path

from ribseg.commands.files import each_image, targets_of
from ribseg.errors import ConfigError
from ribseg.files import read_stamp, write_json

STAMP = "saliency.json"
KINDS = ("isnet", "u2net", "birefnet")


def add_options(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = command.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="photographs, or folders of them")
    add("--network", required=True, type=Path, metavar="FILE", help="ONNX file of a saliency network")
    add("--kind", choices=KINDS, default="isnet", help="what it is like; default: isnet")
    add("--side", type=int, help="of its input in pixels, for a file that takes any")
    add("--out", required=True, type=Path, help="folder of the maps")
    add("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    """Makes the maps that are missing; lists the photographs that cannot be read."""
    from ribseg.data.io.images import read_image
    from ribseg.models.saliency import SaliencyNetwork, write_saliency
    from ribseg.store.digest import file_digest

    targets = targets_of(options.images, options.out, ".png")
    network = SaliencyNetwork(options.network, options.kind, options.side)
    made_by = {"network": file_digest(options.network), "kind": options.kind, "side": network.side}
    stamp, there = options.out / STAMP, any(target.is_file() for target in targets)
    of_another = stamp.exists() and any(options.out.glob("*.png"))
    if read_stamp(stamp) != made_by and (there or of_another):
        raise ConfigError(
            f"{options.out} holds maps of another network, or of other programs: choose another --out"
        )
    write_json(stamp, made_by)
    left = {target: image for target, image in targets.items() if not _is_map_of(target, image)}
    if len(left) < len(targets):
        print(f"{len(targets) - len(left)} maps are there already")

    def one(target: Path, image: Path) -> str:
        write_saliency(target, network(read_image(image)))
        return ""

    if left:
        done, failure = f"maps written to {options.out}", "could not be read"
        each_image(left, one, "Saliency", done, failure, options.quiet)


def _is_map_of(target: Path, image: Path) -> bool:
    """Whether a file is a whole gray image of a photograph's size; a photograph of no size has no map."""
    from ribseg.data.io.images import read_header
    from ribseg.errors import DataError
    from ribseg.interop.saliency import read_gray

    try:
        return target.is_file() and read_gray(target).shape == read_header(image).size
    except DataError:
        return False
