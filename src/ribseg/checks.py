"""Validation of arguments: numbers in ranges, choices, switches."""

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

from ribseg.errors import ConfigError


class SettingError(ConfigError):
    """Arguments are out of range; each message begins with the name of one."""

    def __init__(self, *messages: str) -> None:
        super().__init__("\n  ".join(messages))
        self.messages = messages

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        return type(self), self.messages


def check_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    whole: bool = False,
    above: float = -math.inf,
    below: float = math.inf,
    words: Collection[str | None] = (),
) -> None:
    """Raises a SettingError unless an argument is a number in a range.

    Args:
        name: of the argument.
        value: of the argument; booleans are not numbers.
        low: inclusive lower bound.
        high: inclusive upper bound.
        whole: require an integer.
        above: exclusive lower bound.
        below: exclusive upper bound.
        words: other accepted values; None is shown as null, as in configurations.

    >>> check_number("steps", 2.5, low=0, whole=True)
    Traceback (most recent call last):
    ribseg.checks.SettingError: steps: expected an integer >= 0, got 2.5
    """
    if isinstance(value, str | None) and value in words:
        return
    known = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if known and -math.inf < value < math.inf and low <= value <= high and above < value < below:
        return
    ends = {">": above, ">=": low, "<": below, "<=": high}
    shown = {sign: end if isinstance(end, int) else f"{end:g}" for sign, end in ends.items()}
    bounds = " and ".join(f"{sign} {shown[sign]}" for sign, end in ends.items() if math.isfinite(end))
    if math.isfinite(low) and math.isfinite(high):
        bounds = f"in [{shown['>=']}, {shown['<=']}]"
    kind = "an integer" if whole else "a number"
    others = "".join(f", or {_shown(word)}" for word in words)
    expected = f"{kind} {bounds}".rstrip() + others
    raise SettingError(f"{name}: expected {expected}, got {_shown(value, quoted=True)}")


def check_switch(name: str, value: Any) -> None:
    """Raises a SettingError unless an argument is a boolean; strings like "no" would count as true.

    >>> check_switch("flip", "no")
    Traceback (most recent call last):
    ribseg.checks.SettingError: flip: expected true or false, got 'no'
    """
    if not isinstance(value, bool):
        raise SettingError(f"{name}: expected true or false, got {_shown(value, quoted=True)}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises a SettingError unless an argument is one of the choices.

    >>> check_choice("rule", "mine", ["official", "paper"])
    Traceback (most recent call last):
    ribseg.checks.SettingError: rule: expected official | paper, got 'mine'
    """
    if value not in choices:
        raise SettingError(f"{name}: expected {' | '.join(choices)}, got {_shown(value, quoted=True)}")


def check_numbers(name: str, values: Any, *, number: int | None = None, **ranges: Any) -> None:
    """Raises a SettingError unless an argument is a list of numbers, each in a range of `check_number`.

    Args:
        name: of the argument.
        values: of the argument.
        number: required length; None for at least one.
        ranges: keyword arguments of `check_number`.
    """
    listed = isinstance(values, Collection) and not isinstance(values, str | bytes | Mapping)
    if not listed or len(values) != (number or max(len(values), 1)):
        expected = "a list of numbers" if number is None else f"a list of {number} numbers"
        raise SettingError(f"{name}: expected {expected}, got {_shown(values, quoted=True)}")
    for place, value in enumerate(values):
        check_number(f"{name}[{place}]", value, **ranges)


def check_arguments(check: Callable[..., None], name: str, arguments: Mapping[str, Any] | None) -> None:
    """Raises a SettingError unless a function that checks arguments accepts those of a setting.

    Args:
        check: raises a ConfigError; its signature names the arguments.
        name: of the setting.
        arguments: its values; None for none.

    >>> check_arguments(lambda steps=1: None, "walk", {"stps": 2})
    Traceback (most recent call last):
    ribseg.checks.SettingError: walk: got an unexpected keyword argument 'stps'; it knows steps
    """
    if not isinstance(arguments, Mapping | None):
        raise SettingError(f"{name}: expected settings by name, got {_shown(arguments, quoted=True)}")
    given, known = dict(arguments or {}), inspect.signature(check)
    try:
        known.bind_partial(**given)
    except TypeError as error:
        raise SettingError(f"{name}: {error}; it knows {', '.join(known.parameters)}") from error
    try:
        with within(name):
            check(**given)
    except ConfigError as error:  # then more can be put before the name
        raise error if isinstance(error, SettingError) else SettingError(str(error)) from error


@contextmanager
def within(path: str) -> Iterator[None]:
    """Prefixes the messages of ConfigErrors inside with the path of a setting or argument.

    >>> with within("rib"):
    ...     check_number("steps", -1, low=0, whole=True)
    Traceback (most recent call last):
    ribseg.checks.SettingError: rib.steps: expected an integer >= 0, got -1
    """
    try:
        yield
    except SettingError as error:  # each message begins with the setting's name
        raise SettingError(*(f"{path}.{message}" for message in error.messages)) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _shown(value: Any, quoted: bool = False) -> str:
    if value is None:
        return "null"
    return repr(value) if quoted else str(value)
