"""`python -m ribseg.interop`: converts folders of maps and masks from and to other programs' formats."""

import argparse
import sys
from collections.abc import Sequence

from ribseg.data.voc import VOCFolder
from ribseg.errors import RibsegError
from ribseg.interop.convert import Layout, convert_maps
from ribseg.interop.irn import convert_irn_maps, write_irn_maps


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; an error that a user can mend is one message, and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        written = _run(options)
    except RibsegError as error:
        sys.exit(f"ribseg: {error}")
    except KeyboardInterrupt:
        sys.exit("ribseg: interrupted. Give the same command again: it goes on where it stopped.")
    print(f"{written} files written to {options.target}; what was there already is kept.")


def _run(options: argparse.Namespace) -> int:
    source, target, progress = options.source, options.target, not options.quiet
    if options.command == "irn-to-ribseg":
        return convert_irn_maps(source, target, options.classes, options.trust, progress)
    if options.command == "ribseg-to-irn":
        return write_irn_maps(source, target, progress)
    layout: Layout = "png" if options.command == "pngs-to-ribseg" else "masks"
    return convert_maps(source, target, VOCFolder(options.root, options.split), layout, progress=progress)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ribseg.interop", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("source", help="folder to read")
        command.add_argument("target", help="folder to write; files that are there already are kept")
        command.add_argument("--quiet", action="store_true", help="no progress bar")
        return command

    irn = add("irn-to-ribseg", "pickled .npy dictionaries of IRN or RIB (keys, cam, high_res) to .npz maps")
    irn.add_argument("--classes", type=int, required=True, help="number of classes without background")
    irn.add_argument("--trust", action="store_true", help="the files are your own, or you trust their maker")
    add("ribseg-to-irn", ".npz maps to IRN's .npy dictionaries")
    for name, text in (
        ("pngs-to-ribseg", "gray PNGs <id>/<class name>.png or <id>_<class name>.png to .npz maps"),
        ("masks-to-ribseg", "masks <id>.png that hold class ids to .npz maps of ones and zeros"),
    ):
        command = add(name, text)
        command.add_argument(
            "--root", required=True, help="data set in VOC layout, for ids, classes and sizes"
        )
        command.add_argument("--split", required=True, help="its list of images, e.g. train")
    return parser


if __name__ == "__main__":
    main()
