"""Class names, their indices, and their order."""

import difflib
from collections.abc import Sequence

import numpy as np

from ribseg.checks import check_number
from ribseg.errors import ConfigError, DataError

SHOWN = 8  # names in a message


def indices_of(labels: Sequence[str | int], names: Sequence[str] | None, number: int) -> list[int]:
    """The indices of classes.

    Args:
        labels: names, case-insensitive, or indices starting at 0. For names that list synonyms ("tabby, tabby
            cat") one synonym is enough.
        names: of all classes; None if unknown.
        number: C.

    Raises:
        ConfigError: no label, or one that is unknown or ambiguous, or an index twice.

    >>> indices_of(["Dog", 0], ["cat", "dog"], 2)
    [1, 0]
    """
    if isinstance(labels, str) or not np.iterable(labels) or not len(labels):
        raise ConfigError(f'expected a list of classes, such as labels=["dog"], got {labels!r}')
    numbers = [label for label in labels if not isinstance(label, str)]
    for label in numbers:
        check_number("labels", label, low=0, high=number - 1, whole=True)
    if len({*numbers}) < len(numbers):
        raise ConfigError(f"expected indices of classes, got {[*numbers]}: is it a vector of zeros and ones?")
    found = (_index_of_name(label, names) if isinstance(label, str) else int(label) for label in labels)
    return list(dict.fromkeys(found))


def _index_of_name(label: str, names: Sequence[str] | None) -> int:
    if names is None:
        raise ConfigError(f"the network has no names of classes: pass indices instead of {label!r}")
    wanted = label.strip().lower()
    whole = [index for index, name in enumerate(names) if name.lower() == wanted]
    synonyms = [
        i for i, name in enumerate(names) if wanted in [part.strip() for part in name.lower().split(",")]
    ]
    found = whole or synonyms
    if len(found) == 1:
        return found[0]
    similar = [names[i] for i in found] or [name for name in names if wanted and wanted in name.lower()]
    similar = similar or difflib.get_close_matches(label, names, n=SHOWN, cutoff=0.4) or list(names)
    more = "" if len(similar) <= SHOWN else f" and {len(similar) - SHOWN} more"
    what = "matches several classes" if found else "is not a class of this network"
    raise ConfigError(f"{label!r} {what}; there is {'; '.join(similar[:SHOWN])}{more}")


def class_order(found: Sequence[str], wanted: Sequence[str], source: str) -> list[int]:
    """The place of each wanted class among those of a file, found by name.

    Args:
        found: names in the file, in its order.
        wanted: names of the data, in theirs.
        source: of the names, for messages.

    Raises:
        DataError: these are not the same names.

    >>> class_order(["dog", "cat"], ["cat", "dog"], "a.safetensors")
    [1, 0]
    """
    lacking = [name for name in wanted if name not in found]
    foreign = [name for name in found if name not in wanted]
    if lacking or foreign:
        raise DataError(
            f"{source} is of other classes than the data: it lacks {lacking[:5]} of classes.txt, and has "
            f"{foreign[:5]} ({len(found)} classes, expected {len(wanted)}). Write the names alike, or take "
            "another file."
        )
    return [list(found).index(name) for name in wanted]
