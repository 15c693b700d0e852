"""Tables: what is declared of one, and how it is made of records, for the terminal, pages and files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from ribseg.pipeline.report.records import Record, splits_of

Cell = str | float | None
Grid = tuple[list[str], list[list[Cell]]]  # columns and rows


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
    """A table.

    Attributes:
        title: shown above.
        columns: names; line breaks are kept.
        rows: each with as many cells as columns; in tables to be shown all of them are texts.
        note: explanation, shown below.
        text: names of columns to align left, as the first one always is; others are aligned right.
        bold: first cells of the rows to print in bold.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
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
            table.add_row(*(escape(str(cell)) for cell in row), style="bold" if row[0] in self.bold else None)
        return table


def percent(value: float | None) -> str:
    """A fraction as text, in percent.

    >>> percent(0.123), percent(None)
    ('12.3', '-')
    """
    return "-" if value is None else f"{100 * value:.1f}"


def signed_interval(bounds: Sequence[float]) -> str:
    """An interval of differences of fractions as text, in percent.

    >>> signed_interval((-0.012, 0.2))
    '[-1.2, +20.0]'
    """
    return f"[{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]"


class Column(NamedTuple):
    """A column of a declared table, or several, one for each place of its measure.

    Attributes:
        title: with attributes of the records, as "{place}", for a column for each.
        measure: of the records; "" for an attribute that all records of a row have in common.
        text: format of a cell, with the attributes of its record, "{percent}", and "{low}" and "{high}" of
            its interval in percent; without a measure the attribute's name.
        note: shown below a table with this column.
        optional: whether the column is left out if no record has the measure; others have "-" then, as cells
            have of which something is not known.
        sortable: whether a page sorts by the number, not by the text.
    """

    title: str
    measure: str = ""
    text: str = "{percent:.1f}"
    note: str = ""
    optional: bool = False
    sortable: bool = False

    def cell(self, record: Record, plain: bool) -> Cell:
        """The cell of a record: a text, or with `plain` its number."""
        if not self.measure:
            value: Cell = getattr(record, self.text)
            return value
        if plain:
            return record.value
        numbers = (record.value, *(record.interval or (None, None)))
        percent, low, high = (None if number is None else 100 * number for number in numbers)
        try:
            text = self.text.format(**vars(record), percent=percent, low=low, high=high)
        except TypeError:  # None has no decimals
            return "-"
        return Sortable(text, record.value or 0.0) if self.sortable else text


@dataclass(frozen=True)
class Declared:
    """What is declared of a table.

    Attributes:
        part: of the records.
        columns: of the table.
        title: with "{split}" and "{number}", that of the images; "" for tables of files alone.
        splits: "each" one has a table, only the "last" one, or "all" together in one table.
        controls: whether it has them.
        file: name of the table in files and for loggers, with "{split}" for one by split; "" for none.
        note: shown below, with those of its columns; by split below the last one.
        bold: whether rows are bold that are no controls.
    """

    part: str
    columns: Sequence[Column]
    title: str = ""
    splits: str = "last"
    controls: bool = True
    file: str = ""
    note: str | Callable[[Sequence[Record]], str] = ""
    bold: bool = False

    def tables(self, records: Sequence[Record]) -> Iterator[TableData]:
        """The tables of some records; none without records of its measures."""
        known = splits_of(records, self.part)
        chosen = {"each": [[split] for split in known], "last": [known[-1:]], "all": [known]}[self.splits]
        for splits in chosen:
            found = self._found(records, splits)
            if found:
                yield self._table(found, noted=splits == chosen[-1])

    def files(self, records: Sequence[Record]) -> Iterator[tuple[str, TableData]]:
        """The names and tables of its files."""
        known = splits_of(records, self.part)
        for splits in [[split] for split in known] if "{split}" in self.file else [known]:
            found = self._found(records, splits) if self.file else []
            if found:
                yield self.file.format(split=found[0].split), self._table(found, plain=True)

    def _found(self, records: Sequence[Record], splits: Sequence[str]) -> list[Record]:
        measures = {column.measure for column in self.columns if column.measure}
        return [
            record
            for record in records
            if record.part == self.part and record.split in splits and record.measure in measures
            if self.controls or not record.control
        ]

    def _table(self, found: Sequence[Record], noted: bool = False, plain: bool = False) -> TableData:
        measured = {record.measure for record in found}
        shown = [c for c in self.columns if not c.optional or c.measure in measured]
        text = [column.title for column in shown if not column.measure]
        notes = [self.note if isinstance(self.note, str) else self.note(found)]
        notes += dict.fromkeys(column.note for column in shown)
        columns, rows = self._grid(found, shown, plain)
        return TableData(
            self.title.format(split=found[0].split, number=found[0].number),
            columns,
            rows,
            " ".join(filter(None, notes)) if noted else "",
            text=text,
            bold=[record.name for record in found if self.bold and not record.control],
        )

    def _grid(self, found: Sequence[Record], shown: Sequence[Column], plain: bool) -> Grid:
        """The titles of all columns, and a row for all records that are equal in what rows have in common."""
        common = [column.text for column in shown if not column.measure]
        titles: dict[str, None] = {}
        rows: dict[tuple[object, ...], dict[str, Cell]] = {}
        for column in shown:
            titles |= {} if "{" in column.title else {column.title: None}
            for record in found:
                if column.measure in ("", record.measure):
                    title = column.title.format(**vars(record), name=record.name)
                    titles[title] = None
                    key = tuple(getattr(record, name) for name in common)
                    rows.setdefault(key, {})[title] = column.cell(record, plain)
        absent = None if plain else "-"
        return list(titles), [[row.get(title, absent) for title in titles] for row in rows.values()]
