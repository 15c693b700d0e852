"""The console for tables and messages."""

import logging
import sys
import warnings

from rich.console import Console

TABLE_WIDTH = 110


def make_console(quiet: bool = False) -> Console:
    """A console as wide as the terminal; in a file or a pipe as wide as the tables need."""
    return Console(quiet=quiet, width=None if sys.stdout.isatty() else TABLE_WIDTH, highlight=False)


def quiet_lightning() -> None:
    """Silences the messages that Lightning logs whenever a Trainer starts; its warnings stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    # BatchNorm statistics are frozen on purpose.
    warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training")
    # From Lightning 2.6 with torch >= 2.12; not the user's concern.
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)
