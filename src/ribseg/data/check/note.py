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


def names_and_counts(classes: Sequence[str], counts: Mapping[int, int], counted: bool = True) -> str:
    """A text with classes and their numbers of images.

    >>> names_and_counts(["cat", "dog"], {1: 3})
    "the class 'dog' has 3 images"
    """
    parts = [f"{classes[c]!r}" + (f" ({n})" if counted else "") for c, n in list(counts.items())[:SHOWN]]
    parts += [f"{len(counts) - SHOWN} more"] if len(counts) > SHOWN else []
    if not counted:
        return ", ".join(parts)
    if len(counts) == 1:
        ((c, n),) = counts.items()
        return f"the class {classes[c]!r} has {n} image{'' if n == 1 else 's'}"
    return f"{len(counts)} classes have images ({', '.join(parts)})"
