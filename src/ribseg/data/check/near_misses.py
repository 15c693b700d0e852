"""Hints for names that are not found but similar to a known one: extension, case, Unicode, lost zeros."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from os.path import splitext

ENDINGS = (".jpg", ".jpeg", ".png", ".xml", ".bmp", ".tif", ".tiff", ".npy", ".npz", ".txt")


def near_misses(absent: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Missing name -> a hint with the similar known name and the difference, if there is one.

    >>> near_misses(["a", "B1", "x"], ["a.jpg", "b1", "y"])
    {'a': "there as 'a.jpg': file ending", 'B1': "there as 'b1': upper and lower case"}
    """
    wanted = list(absent)
    if not wanted:
        return {}
    nearest: dict[str, str] = {}
    for name in known:
        nearest.setdefault(_loose(name), name)
    found = {name: nearest.get(_loose(name)) for name in wanted}
    return {
        name: f"there as {other!r}: {', '.join(_differences(name, other))}"
        for name, other in found.items()
        if other is not None and other != name
    }


def explained(absent: Sequence[str], known: Iterable[str]) -> list[str]:
    """The missing names, each with its hint if there is one."""
    near = near_misses(absent, known)
    return [with_reason(name, near.get(name)) for name in absent]


def with_reason(what: str, why: str | None) -> str:
    """The text, with a reason in parentheses if there is one."""
    return f"{what} ({why})" if why else what


def without_ending(name: str) -> str:
    """A file name without a known extension; other dots are kept.

    >>> without_ending("a.b.JPG"), without_ending("a.b")
    ('a.b', 'a.b')
    """
    stem, ending = splitext(name)  # noqa: PTH122 - of a name, not of a path
    return stem if ending.lower() in ENDINGS else name


# Normalization steps in the order of their application, each with the difference that it removes.
STEPS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("Unicode form, which looks the same (NFC, NFD)", lambda name: unicodedata.normalize("NFC", name)),
    ("folder in front", lambda name: name.replace("\\", "/").rsplit("/", 1)[-1]),
    ("quotation marks", lambda name: name.strip("'\"")),
    ("spaces", lambda name: "_".join(name.split())),
    ("file ending", without_ending),
    (
        "zeros in front, which spreadsheets drop",
        lambda name: (name.lstrip("0") or "0") if name.isdigit() else name,
    ),
    ("upper and lower case", str.casefold),
)


def _loose(name: str) -> str:
    for _, step in STEPS:
        name = step(name)
    return name


def _differences(name: str, other: str) -> Iterable[str]:
    """The differences between two names: those of the steps that make them more similar."""
    for what, step in STEPS:
        changed = step(name), step(other)
        only_one = (name == changed[0]) != (other == changed[1])
        if only_one or (name != other and changed[0] == changed[1]):
            yield what
        name, other = changed
