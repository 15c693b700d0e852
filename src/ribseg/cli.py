"""The command `ribseg`: trains, localizes, checks data, segments images, converts maps, masks and labels.

`python -m ribseg.predict` and `python -m ribseg.interop` are its sub-commands `predict` and `convert`.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ribseg import __version__
from ribseg.commands import convert, localize, predict
from ribseg.errors import RibsegError

TRAIN = "train"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; what a user can put right is one message, and exit status 1.

    Args:
        arguments: the words after `ribseg`; None for those of this process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == [TRAIN]:  # all others are Hydra's, which has a parser of its own
        from ribseg.launch import train

        return train(words[1:], [TRAIN])
    options = parser().parse_args(words)
    try:
        options.run(options)
    except RibsegError as error:
        sys.exit(f"ribseg: {error}")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = argparse.ArgumentParser(
        prog="ribseg", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    whole.add_argument("--version", action="version", version=f"ribseg {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    text = "run an experiment: ribseg train experiment=demo, in Hydra's grammar; ribseg train --help"
    commands.add_parser(TRAIN, help=text, add_help=False)
    localize.add_command(commands)
    _add_check(commands)
    predict.add_command(commands)
    convert.add_command(commands)
    return whole


def _add_check(commands: Any) -> None:
    text = "Looks at all files of a data set: counts, sizes, labels, damage, images in two splits."
    command = commands.add_parser("check", help="look at all files of a data set", description=text)
    command.set_defaults(run=_check)
    command.add_argument("data", help="folder in VOC layout")
    command.add_argument("settings", nargs="*", help="as data.train_split=trainaug data.labels=FILE")


def _check(options: argparse.Namespace) -> None:
    """Looks at all files of a folder in VOC layout, as `run=[check_data]` does."""
    from ribseg.launch import train

    train(
        ["experiment=rib_folder", f"data.root={options.data}", "run=[check_data]", *options.settings], [TRAIN]
    )
