"""The log of a run: what it prints, the warnings of libraries, and how it ended, each line with its time."""

import logging
import re
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import ribseg
from ribseg.errors import RibsegError
from ribseg.store.artefact import check_writable

LOG = "log.txt"
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
REDRAWN = re.compile(r"\x1b\[\d*[AFJK]")  # moves the cursor up or erases: a bar


class Stamped:
    """A file that begins every line with the time, and drops what only a terminal understands.

    Args:
        file: is flushed after each line, so that a killed run loses none.
    """

    encoding = "utf-8"

    def __init__(self, file: IO[str]) -> None:
        self.file, self.rest = file, ""

    def write(self, text: str) -> int:
        """Writes the complete lines of the text; of a line that was overwritten, what was left."""
        if REDRAWN.search(text):
            return len(text)
        *lines, self.rest = (self.rest + ESCAPES.sub("", text)).split("\n")
        self.rest = self.rest.rpartition("\r")[2]
        for line in lines:
            left = line.rstrip("\r").rpartition("\r")[2]
            self.file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {left}".rstrip() + "\n")
        return len(text)

    @property
    def end(self) -> str:
        """What ends a line that is not complete."""
        return "\n" if self.rest else ""

    def flush(self) -> None:
        """Does nothing: every line is written at once."""

    def isatty(self) -> bool:
        """Never: it takes no colours."""
        return False


class Copied:
    """A stream of which the log gets a copy.

    Rich finds the stream itself by `rich_proxied_file`, so that no bar goes to the log.
    """

    def __init__(self, stream: IO[str], log: Stamped) -> None:
        self.rich_proxied_file, self.log = stream, log

    def write(self, text: str) -> int:
        """Writes to both."""
        self.log.write(text)
        return self.rich_proxied_file.write(text)

    def writelines(self, lines: Any) -> None:
        """Writes to both."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def log_file(folder: Path, first: bool) -> Iterator[IO[str] | None]:
    """Appends to `log.txt` in a run's folder while the run lasts; yields the file for the console.

    Args:
        folder: of the run.
        first: whether this is the first process; the others log nothing, and get None.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    check_writable(folder, "hydra.run.dir")
    if not first:
        yield None
        return
    with ExitStack() as stack:
        log: Any = Stamped(stack.enter_context((folder / LOG).open("a", buffering=1, encoding="utf-8")))
        log.write(f"ribseg {ribseg.__version__}: {shlex.join(sys.argv)}\n")
        stack.enter_context(_copies(log))
        stack.enter_context(_library_warnings(log))
        stack.enter_context(_end(log))
        yield log


@contextmanager
def _copies(log: Stamped) -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Copied(stream, log) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def _library_warnings(log: Any) -> Iterator[None]:
    """Adds the log to all loggers that hand their records to no other; they have opened their streams."""
    handler = logging.StreamHandler(log)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    known = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    ends = [logging.root, *(one for one in known if not one.propagate)]
    for logger in ends:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in ends:
            logger.removeHandler(handler)


@contextmanager
def _end(log: Stamped) -> Iterator[None]:
    """Writes how the run ended: with the message of an error of ours, else with the traceback."""
    try:
        yield
    except RibsegError as error:
        log.write(f"{log.end}failed: {error}\n")
        raise
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        log.write(f"{log.end}{'interrupted' if interrupted else 'failed'}:\n{traceback.format_exc()}")
        raise
    log.write(f"{log.end}finished\n")
