"""The console for tables and messages, and the log of a run: what it prints, warnings, and how it ended."""

import io
import logging
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, NewLine
from rich.control import Control
from rich.text import Text

import ribseg
from ribseg.errors import RibsegError
from ribseg.progress import LOG
from ribseg.store.artefact import check_writable

TABLE_WIDTH = 110
LOG_FILE = "log.txt"


class LoggedConsole(Console):
    """A console whose prints are in the run's log, too, as plain text.

    As wide as the terminal; in a file or a pipe as wide as the tables need.

    Args:
        quiet: prints and logs nothing.
        kwargs: of rich's console.
    """

    def __init__(self, quiet: bool = False, **kwargs: Any) -> None:
        width = None if sys.stdout.isatty() else TABLE_WIDTH
        super().__init__(quiet=quiet, highlight=False, **{"width": width} | kwargs)

    def print(self, *objects: Any, **kwargs: Any) -> None:
        """Prints and logs, but does not log what moves the cursor, as bars do, or ends them."""
        super().print(*objects, **kwargs)
        bar = all(isinstance(each, Control | NewLine) for each in objects)
        if LOG.handlers and not self.quiet and not bar:
            plain = Console(file=io.StringIO(), width=TABLE_WIDTH, highlight=False, force_terminal=False)
            with plain.capture() as text:
                plain.print(*objects, **kwargs)
            LOG.info(text.get().rstrip("\n"))

    def say(self, text: str, name: str = "", style: str = "bold") -> None:
        """Prints a line as it is, without breaks, so that paths can be copied.

        Args:
            text: may hold brackets and line breaks.
            name: of what it is about, printed before it.
            style: of the name.
        """
        self.print(Text.assemble((name, style), ": " if name else "", text), soft_wrap=True)


@contextmanager
def log_file(folder: Path, first: bool) -> Iterator[None]:
    """Appends to `log.txt` in a run's folder while the run lasts, each line with its time.

    It gets what a `LoggedConsole` prints, the warnings of Python and of all loggers, and how the run ended.
    Each line is written at once, so that a killed run loses none.

    Args:
        folder: of the run.
        first: whether this is the first process; the others log nothing.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    check_writable(folder, "hydra.run.dir")
    if not first:
        yield
        return
    handler = logging.FileHandler(folder / LOG_FILE, encoding="utf-8")
    handler.setFormatter(_TimedLines())
    handler.addFilter(lambda record: record.name == LOG.name or record.levelno >= logging.WARNING)
    with ExitStack() as stack:
        stack.callback(handler.close)
        for logger in _last_loggers():
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)
        stack.enter_context(_logged_warnings())
        LOG.info("ribseg %s: %s", ribseg.__version__, shlex.join(sys.argv))
        try:
            yield
        except RibsegError as error:
            LOG.info("failed: %s", error)
            raise
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            LOG.info("interrupted:" if interrupted else "failed:", exc_info=True)
            raise
        LOG.info("finished")


class _TimedLines(logging.Formatter):
    """Begins every line with the time; says who warned."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.name != LOG.name:
            text = f"{record.levelname} {record.name}: {text}"
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return "\n".join(f"{when}  {line}".rstrip() for line in text.split("\n"))


def _last_loggers() -> list[logging.Logger]:
    """The loggers that hand their records to no other, as Lightning's: `LOG` is one, the root another."""
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(one for one in known if isinstance(one, logging.Logger) and not one.propagate)]


@contextmanager
def _logged_warnings() -> Iterator[None]:
    """Logs Python's warnings; unlike `logging.captureWarnings` it also shows them as before."""
    before = warnings.showwarning

    def show(*warning: Any, **options: Any) -> None:
        message, category, filename, line, *_ = warning
        LOG.warning(warnings.formatwarning(message, category, filename, line).rstrip())
        before(*warning, **options)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def quiet_lightning() -> None:
    """Silences the messages that Lightning logs whenever a Trainer starts; its warnings stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    # BatchNorm statistics are frozen on purpose.
    warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training")
    # Of a training that is resumed, as the run says itself.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Of a training without validation, as data.eval_splits=[] asks for.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    # From Lightning 2.6 with torch >= 2.12; not the user's concern.
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)
