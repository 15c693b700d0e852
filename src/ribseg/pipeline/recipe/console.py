"""The console for tables and messages."""

import logging
import sys
import warnings
from typing import IO, Any

from rich.console import Console, NewLine
from rich.control import Control
from rich.text import Text

TABLE_WIDTH = 110


class LoggedConsole(Console):
    """A console that also writes what is printed, as plain text, to a log.

    Args:
        log: the file; None for none.
        kwargs: of rich's console.
    """

    def __init__(self, log: IO[str] | None = None, **kwargs: Any) -> None:
        # Beside the log's copy of standard output: what is printed here would be logged twice.
        super().__init__(file=getattr(sys.stdout, "rich_proxied_file", None), highlight=False, **kwargs)
        self.log_text = None if log is None else Console(
            file=log, width=TABLE_WIDTH, highlight=False, color_system=None, force_terminal=False
        )  # fmt: skip

    def print(self, *objects: Any, **kwargs: Any) -> None:
        """Prints to both, but not what moves the cursor, as bars do, or ends them."""
        super().print(*objects, **kwargs)
        if self.log_text is not None and not all(isinstance(each, Control | NewLine) for each in objects):
            self.log_text.print(*objects, **kwargs)

    def say(self, text: str, name: str = "", style: str = "bold") -> None:
        """Prints a line as it is, without breaks, so that paths can be copied.

        Args:
            text: may hold brackets and line breaks.
            name: of what it is about, printed before it.
            style: of the name.
        """
        self.print(Text.assemble((name, style), ": " if name else "", text), soft_wrap=True)

    def note(self, text: str) -> None:
        """Writes a line to the log alone."""
        if self.log_text is not None:
            self.log_text.print(text, markup=False, soft_wrap=True)


def make_console(quiet: bool = False, log: IO[str] | None = None) -> LoggedConsole:
    """A console as wide as the terminal; in a file or a pipe as wide as the tables need.

    Args:
        quiet: prints nothing.
        log: gets everything that is printed as well.
    """
    return LoggedConsole(
        None if quiet else log, quiet=quiet, width=None if sys.stdout.isatty() else TABLE_WIDTH
    )


def quiet_lightning() -> None:
    """Silences the messages that Lightning logs whenever a Trainer starts; its warnings stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    # BatchNorm statistics are frozen on purpose.
    warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training")
    # From Lightning 2.6 with torch >= 2.12; not the user's concern.
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)
