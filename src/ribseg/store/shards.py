"""Shards: a call makes its part of the images, another one elsewhere the next part, and a last one the rest.

`shard=3/16` needs neither a scheduler nor processes that know of each other: what a shard makes is a function
of its number, the results of all shards are files in the same store, and the call without `shard` makes what
is still missing in them, whatever became of the others.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ribseg.checks import SettingError
from ribseg.errors import ConfigError

if TYPE_CHECKING:
    from ribseg.pipeline.recipe.context import Context
    from ribseg.store.stage import Stage

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


def leave_to_last_call(context: "Context", stages: Sequence["Stage"]) -> None:
    """Takes the stages that need more than a shard's part of the images out of the run, and the report.

    Args:
        context: of a run with `shard`, whose stages have been planned.
        stages: all stages of the configuration.

    Raises:
        ConfigError: no chosen stage can be made in shards, or a result would have to be made again.
    """
    chosen = [stage for stage in stages if stage.name in context.cfg.run]
    if not any(stage.in_shards for stage in chosen):
        raise ConfigError(
            f"shard={context.shard} would have no effect: none of run=[{','.join(context.cfg.run)}] makes "
            "something for each image; leave it out, or add cam, rib or another method"
        )
    partial: set[str] = set()  # stages of which the store will not have all images
    left = []
    for stage in chosen:
        if context.agree(context.is_ready(stage.name)):
            continue
        if partial & set(stage.required(context)):
            left.append(stage.name)
        elif stage.in_shards:
            _check_first_time(context, stage)
        if stage.in_shards or stage.name in left:
            partial.add(stage.name)
    left += sorted(set(context.cfg.run) - {stage.name for stage in chosen})  # the report, which is no stage
    context.cfg.run = [name for name in context.cfg.run if name not in left]
    rest = f"; left to the last call, without shard: {', '.join(left)}" if left else ""
    context.console.say(f"{context.shard}{rest}", "shard")


def _check_first_time(context: "Context", stage: "Stage") -> None:
    """Raises a ConfigError if a stage is made again, which would mix new images with old ones."""
    if stage.name in context.rerun or context.artefacts[stage.name].complete:
        raise ConfigError(
            f"{stage.name} would be made again, and only as a whole: leave shard={context.shard} out"
        )
