"""The class of notes on unusual data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SHOWN = 5  # classes in one note


@dataclass(frozen=True)
class Note:
    """One finding in the data.

    Attributes:
        key: stable identifier of the kind.
        found: the finding, with counts; without a full stop.
        means: the consequence for the run, in sentences.
        helps: advice, in sentences.
    """

    key: str
    found: str
    means: str
    helps: str

    def __str__(self) -> str:
        return f"{self.found[0].upper()}{self.found[1:]}. {self.means} {self.helps}"


def first_of(texts: Sequence[str]) -> str:
    """The first few texts, and how many more there are.

    >>> first_of("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def names_and_counts(classes: Sequence[str], counts: Mapping[int, int]) -> str:
    """A text with classes and their numbers of images.

    >>> names_and_counts(["cat", "dog"], {1: 3})
    "the class 'dog' has 3 images"
    """
    if len(counts) == 1:
        ((c, n),) = counts.items()
        return f"the class {classes[c]!r} has {n} image{'' if n == 1 else 's'}"
    listed = first_of([f"{classes[c]!r} ({n})" for c, n in counts.items()])
    return f"{len(counts)} classes have images ({listed})"
