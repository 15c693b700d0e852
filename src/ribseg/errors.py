"""Errors of ribseg. Each message says what was expected, what was found, and what to do."""

from collections.abc import Mapping, Sequence

LONGEST = 500  # characters of one problem: a broken file can hold a "name" of megabytes


class RibsegError(Exception):
    """Base of every error that ribseg raises on purpose; `train.py` prints these without a traceback."""


class DatasetNotFoundError(RibsegError, FileNotFoundError):
    """A data set, or a part of it that must be there, is not where it was looked for."""


class DataError(RibsegError, ValueError):
    """Files of a data set are broken or contradict each other."""


class ConfigError(RibsegError, ValueError):
    """A setting, or a combination of settings, cannot work."""


class DeviceMemoryError(RibsegError, RuntimeError):
    """A GPU's memory does not suffice for what was asked at once."""


def list_problems(headline: str, problems: Mapping[str, Sequence[str]], advice: str, show: int = 5) -> str:
    """Formats problems by kind: the count and the first few of each, then what to do.

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
    """What a library's exception says, shortened; its type where it says nothing.

    >>> reason(OSError("no space left")), reason(EOFError())
    ('no space left', 'EOFError')
    """
    return shortened(str(error)) or type(error).__name__


def shortened(text: str) -> str:
    """The text, or its beginning where it is very long."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
