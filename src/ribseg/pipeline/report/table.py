"""Tables of results, for the terminal and the HTML report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table


class Sortable(str):
    """A cell's text that a page sorts by a number, as durations.

    Attributes:
        value: the number.
    """

    value: float

    def __new__(cls, text: str, value: float) -> "Sortable":
        """The text with its number."""
        cell = super().__new__(cls, text)
        cell.value = value
        return cell


@dataclass(frozen=True)
class TableData:
    """A table with cells as text.

    Attributes:
        title: shown above.
        columns: names; line breaks are kept.
        rows: each with as many cells as columns.
        note: explanation, shown below.
        text: names of columns to align left, as the first one always is; others are aligned right.
        bold: first cells of the rows to print in bold.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    text: Sequence[str] = ()
    bold: Sequence[str] = ()

    def aligned_left(self, place: int) -> bool:
        """Whether a column, counted from 0, is aligned left."""
        return place == 0 or self.columns[place] in self.text

    def for_terminal(self) -> Table:
        """The table for rich."""
        table = Table(
            title=escape(self.title),
            title_justify="left",
            caption=escape(self.note) or None,
            caption_justify="left",
            caption_style="dim",
        )
        for place, name in enumerate(self.columns):
            left = self.aligned_left(place)
            table.add_column(escape(name), justify="left" if left else "right", no_wrap=place == 0)
        for row in self.rows:
            table.add_row(*map(escape, row), style="bold" if row[0] in self.bold else None)
        return table


def percent(value: float | None) -> str:
    """A fraction as text, in percent.

    >>> percent(0.123), percent(None)
    ('12.3', '-')
    """
    return "-" if value is None else f"{100 * value:.1f}"


def percent_interval(bounds: Sequence[float]) -> str:
    """An interval of fractions as text, in percent.

    >>> percent_interval((0.123, 0.2))
    '12.3-20.0'
    """
    return f"{100 * bounds[0]:.1f}-{100 * bounds[1]:.1f}"


def signed_interval(bounds: Sequence[float]) -> str:
    """An interval of differences of fractions as text, in percent.

    >>> signed_interval((-0.012, 0.2))
    '[-1.2, +20.0]'
    """
    return f"[{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]"


Columns = dict[str, list[float | None]]  # title -> IoU of background and each class


def class_table(title: str, classes: Sequence[str], columns: Columns) -> TableData:
    """A table of the IoU, in percent, of background and each class.

    Args:
        title: of the table.
        classes: C names.
        columns: name -> C + 1 values.
    """
    names = ("background", *classes)
    rows = [[name, *map(percent, values)] for name, *values in zip(names, *columns.values(), strict=True)]
    return TableData(title, ["class", *columns], rows)


def group_table(
    scores: Mapping[str, Mapping[str, Any]], key: str, name: str, title: str, first: str, note: str = ""
) -> TableData:
    """The table of the mIoU in groups of images.

    Args:
        scores: name of a row -> scores.
        key: of the scores, a list of groups, each with "images", "miou" and its name.
        name: the key of a group's name.
        title: of the table.
        first: name of the first column.
        note: shown below.
    """
    last = {label: values[key] for label, values in scores.items()}
    columns = [f"{group[name]} (n = {group['images']})" for group in next(iter(last.values()))]
    rows = [[label, *(percent(group["miou"]) for group in found)] for label, found in last.items()]
    return TableData(title, [first, *columns], rows, note)
