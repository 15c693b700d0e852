"""The settings of the report."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ribseg.checks import SettingError, check_number
from ribseg.store.settings import COUNT, SHARE, setting


def check_published(name: str, value: Any) -> None:
    """Raises a SettingError unless a setting is a mapping split -> source -> fraction, or null.

    >>> check_published("published", {"val": {"cam": 48.3}})
    Traceback (most recent call last):
    ribseg.checks.SettingError: published.val.cam: expected a number in [0, 1], got 48.3
    """
    splits = {} if value is None else value
    if not isinstance(splits, Mapping) or not all(isinstance(s, Mapping) for s in splits.values()):
        raise SettingError(f"{name}: expected split -> source -> mIoU in [0, 1], got {value!r}")
    for split, scores in splits.items():
        for source, score in scores.items():
            SHARE(f"{name}.{split}.{source}", score)


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """The settings `report`; no digest covers them."""

    examples: int = setting(COUNT)
    images: int = setting(partial(check_number, low=0, whole=True))
    megabytes: float = setting(partial(check_number, above=0))
    published: Mapping[str, Any] | None = setting(check_published)
    tables: Mapping[str, Any] | None = setting(default=None)
