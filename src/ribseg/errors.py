"""Exceptions of ribseg. Messages say what was expected, what was found, and what to do."""

import lzma
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence

# What readers raise for damaged or foreign files: Pillow's decoders, numpy, unpicklers, archives.
DAMAGED = (
    OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError,
    MemoryError, SyntaxError, ImportError, AssertionError, struct.error, zlib.error, lzma.LZMAError,
    zipfile.BadZipFile, pickle.PickleError, tokenize.TokenError,
)  # fmt: skip
LONGEST = 500  # characters per problem: a broken file can have a "name" of megabytes


class RibsegError(Exception):
    """Base of all exceptions of ribseg; `train.py` prints them without a traceback."""


class DatasetNotFoundError(RibsegError, FileNotFoundError):
    """A data set, or a required part of it, does not exist at the given path."""


class DataError(RibsegError, ValueError):
    """Files of a data set are broken or contradict each other."""


class ConfigError(RibsegError, ValueError):
    """A setting, or a combination of settings, is invalid."""


class DeviceMemoryError(RibsegError, RuntimeError):
    """A device is out of memory."""


def list_problems(headline: str, problems: Mapping[str, Sequence[str]], advice: str, show: int = 5) -> str:
    """Formats problems by kind: their number and the first few, followed by advice.

    >>> print(list_problems("2 files are bad", {"absent": ["a.jpg", "b.jpg"]}, "Fetch them.", show=1))
    2 files are bad
      absent: 2
        a.jpg
        ... and 1 more
    Fetch them.
    """
    lines = [headline]
    for kind, items in problems.items():
        lines.append(f"  {kind}: {len(items)}")
        lines += [f"    {shortened(item)}" for item in items[:show]]
        if len(items) > show:
            lines.append(f"    ... and {len(items) - show} more")
    return "\n".join([*lines, advice])


def reason(error: BaseException) -> str:
    """The message of an exception, shortened; its type if the message is empty.

    >>> reason(OSError("no space left")), reason(EOFError())
    ('no space left', 'EOFError')
    """
    return shortened(str(error)) or type(error).__name__


def shortened(text: str) -> str:
    """The text, truncated if it is very long."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
