"""Shards: a call makes its part of the images, another one elsewhere the next part, and a last one the rest.

`shard=3/16` needs neither a scheduler nor processes that know of each other: what a shard makes is a function
of its number, the results of all shards are files in the same store, and the call without `shard` makes what
is still missing in them, whatever became of the others.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from ribseg.checks import SettingError

T = TypeVar("T")


class Shard(NamedTuple):
    """One of several equal parts of the images.

    Attributes:
        number: from 1 to `of`.
        of: number of the parts.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: Any) -> "Shard | None":
        """The shard that the setting names; None for null.

        Raises:
            SettingError: it names none.

        >>> Shard.parse("3/16").take(range(40))
        [2, 18, 34]
        >>> Shard.parse("17/16")
        Traceback (most recent call last):
        ribseg.checks.SettingError: expected shard=NUMBER/OF, as 3/16, with 1 <= NUMBER <= OF, got '17/16'
        """
        if text is None:
            return None
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", str(text))
        shard = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.of:
            raise SettingError(f"expected shard=NUMBER/OF, as 3/16, with 1 <= NUMBER <= OF, got {text!r}")
        return shard

    def take(self, items: Sequence[T]) -> list[T]:
        """Every `of`-th of the items, so that a list sorted by class or size gives shards of equal work."""
        return list(items[self.number - 1 :: self.of])

    @property
    def label(self) -> str:
        """For names of files: "shard-3-of-16"."""
        return f"shard-{self.number}-of-{self.of}"

    def __str__(self) -> str:
        """As the setting is written."""
        return f"{self.number}/{self.of}"
