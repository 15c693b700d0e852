"""Where tables and messages are printed."""

import logging
import sys
import warnings

from rich.console import Console

TABLE_WIDTH = 110


def make_console(quiet: bool = False) -> Console:
    """A console for the terminal; in a file or a pipe, which have no width, as wide as the tables need."""
    return Console(quiet=quiet, width=None if sys.stdout.isatty() else TABLE_WIDTH, highlight=False)


def quiet_lightning() -> None:
    """Leaves out what Lightning says at every start of a Trainer; its warnings stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    # Frozen BatchNorm statistics are meant.
    warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training")
    # Lightning 2.6 with torch >= 2.12; of no use to whoever runs a stage.
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)
