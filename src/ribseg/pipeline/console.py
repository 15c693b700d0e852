"""Where tables and messages are printed."""

import sys

from rich.console import Console

TABLE_WIDTH = 110


def make_console(quiet: bool = False) -> Console:
    """A console for the terminal; in a file or a pipe, which have no width, as wide as the tables need."""
    return Console(quiet=quiet, width=None if sys.stdout.isatty() else TABLE_WIDTH, highlight=False)
