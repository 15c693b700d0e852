"""Settings of stages as dataclasses: a field says which values it takes, and if it counts for a digest.

A field with a range, and a neutral one:

    thresholds: int = setting(partial(check_number, low=2, whole=True))
    workers: int = setting(COUNT, neutral="changes the speed")

`read` checks the fields; what must fit together is checked by `__post_init__`, after them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar, cast

from ribseg.checks import SettingError, check_number, within
from ribseg.errors import ConfigError

T = TypeVar("T")
Check = Callable[[str, Any], None]
SPEED = "changes the speed, and results by rounding at most"
SHOWN = "changes the output, not the computation"
PLACE = "the fingerprint of the data covers its content"
COUNT = partial(check_number, low=1, whole=True)
COUNT_OR_AUTO = partial(COUNT, words=("auto",))
SHARE = partial(check_number, low=0, high=1)


def setting(
    check: Check | None = None, *, neutral: str = "", kind: type | None = None, **default: Any
) -> Any:
    """A field of a dataclass of settings.

    Args:
        check: is called with the name and the value, and raises a SettingError.
        neutral: why the setting cannot change the result; "" for one that counts.
        kind: dataclass that is built from the value, a mapping.
        default: `default=` or `default_factory=`, of a setting that a configuration may lack.
    """
    return dataclasses.field(metadata={"check": check, "neutral": neutral, "kind": kind}, **default)


def read(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass of settings with its fields' values; other values are left to others.

    Raises:
        ConfigError: a value is missing.
        SettingError: lists all that are out of range, with the expected and the found values.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"expected settings by name, got {values!r}")
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for each in dataclasses.fields(cast(Any, kind)):
        if each.name not in values:
            if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
                raise ConfigError(f"the setting {each.name} is missing")
            continue
        found[each.name] = values[each.name]
        try:
            if inner := each.metadata.get("kind"):
                with within(each.name):
                    found[each.name] = read(inner, values[each.name])
            elif check := each.metadata.get("check"):
                check(each.name, values[each.name])
        except SettingError as error:
            wrong += error.messages
    if wrong:
        raise SettingError(*wrong)
    return kind(**found)


class Settings(dict[type, Any]):
    """Dataclass -> its settings, read from the sections of a configuration.

    Args:
        sections: name -> plain values.
        kinds: name of a section -> the dataclasses that read it; "" is the top, which
            holds other things as well.

    Raises:
        ConfigError: a section has a setting that no dataclass knows, or lacks one.
        SettingError: lists all settings that are out of range, with the expected and the found values.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Evaluation:
    ...     thresholds: int = setting(COUNT)
    >>> Settings({"evaluate": {"thresholds": 11}}, {"evaluate": [Evaluation]})[Evaluation]
    Evaluation(thresholds=11)
    >>> Settings({"evaluate": {"thresholds": 0}}, {"evaluate": [Evaluation]})
    Traceback (most recent call last):
    ribseg.checks.SettingError: evaluate.thresholds: expected an integer >= 1, got 0
    """

    def __init__(
        self, sections: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, Iterable[type]]
    ) -> None:
        super().__init__()
        wrong: list[str] = []
        for path, readers in kinds.items():
            known = {each.name for kind in readers for each in dataclasses.fields(cast(Any, kind))}
            unknown = sorted(set(sections[path]) - known)
            if path and unknown:
                raise ConfigError(
                    f"{path} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}"
                )
            for kind in readers:
                try:
                    with within(path) if path else nullcontext():
                        self[kind] = read(kind, sections[path])
                except SettingError as error:
                    wrong += [message for message in error.messages if message not in wrong]
        if wrong:
            raise SettingError(*wrong)

    def __getitem__(self, kind: type[T]) -> T:
        return cast(T, super().__getitem__(kind))


def counted(settings: Any) -> dict[str, Any]:
    """Name -> value of the fields that are not neutral, nested dataclasses as dictionaries."""
    found = {}
    for each in dataclasses.fields(settings):
        if not each.metadata.get("neutral"):
            value = getattr(settings, each.name)
            found[each.name] = counted(value) if dataclasses.is_dataclass(value) else value
    return found
