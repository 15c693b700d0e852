"""The command `ribseg`: trains, localizes, segments, compares runs, checks data, exports and converts.

`python -m ribseg.predict` and `python -m ribseg.interop` are its subcommands `predict` and `convert`. Each
command is a module of `ribseg.commands`, which imports what it needs when it runs, so that help and errors
about arguments appear at once.
"""

import argparse
import sys
from collections.abc import Sequence

from ribseg import __version__
from ribseg.commands import check, convert, export, localize, predict, report, saliency, text
from ribseg.errors import RibsegError

TRAIN = "train"
COMMANDS = {
    "localize": (localize, "localization maps of single images"),
    "predict": (predict, "segment images"),
    "report": (report, "compare runs, or write the report of one again"),
    "check": (check, "check all files of a data set"),
    "export": (export, "masks for other programs"),
    "convert": (convert, "convert maps, masks and labels"),
    "saliency": (saliency, "saliency maps of photographs, by a published network"),
    "text": (text, "text embeddings of class names, for the method clip_es"),
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
        options.run(options)
    except RibsegError as error:
        sys.exit(f"ribseg: {error}")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; `run` of its result runs the chosen one."""
    whole = argparse.ArgumentParser(
        prog="ribseg", description=__doc__.splitlines()[0], formatter_class=argparse.RawTextHelpFormatter
    )
    whole.add_argument("--version", action="version", version=f"ribseg {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    train = "run an experiment: ribseg train experiment=demo, in Hydra's syntax; ribseg train --help"
    commands.add_parser(TRAIN, help=train, add_help=False)
    keep_lines = argparse.RawDescriptionHelpFormatter
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(
            name, prog=f"ribseg {name}", help=summary, description=module.__doc__, formatter_class=keep_lines
        )
        module.add_options(command)
        command.set_defaults(run=module.run)
    return whole
