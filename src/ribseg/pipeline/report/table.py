"""Tables: what is declared of one, and how it is made of records, for the terminal, pages and files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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


class Column(NamedTuple):
    """A column of a declared table, or several, one for each place of its measure.

    Attributes:
        title: with "{place}" and "{number}" of the record for several columns.
        measure: of the records; "" for what all records of a row have in common, as their name.
        cell: text of a record.
        note: shown below a table with this column.
        optional: whether the column is left out if no record has the measure; others have "-" then.
    """

    title: str
    measure: str = ""
    cell: Callable[[Record], Cell] = lambda record: percent(record.value)
    note: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Declared:
    """What is declared of a table: a row for each source, or with `by_class` for each class.

    Attributes:
        part: of the records.
        columns: of the table; with `by_class` their titles follow the source's name.
        title: with "{split}" and "{number}", that of the images; "" for tables of files alone.
        splits: "each" one has a table, only the "last" one, or "all" together in one table.
        controls: whether it has them.
        by_class: whether rows and columns are exchanged.
        file: name of the table in files and for loggers, with "{split}" for one by split; "" for none.
        note: shown below, with those of its columns; by split below the last one.
        bold: whether rows are bold that are no controls.
        key: attributes of records that one row has in common.
    """

    part: str
    columns: Sequence[Column]
    title: str = ""
    splits: str = "last"
    controls: bool = True
    by_class: bool = False
    file: str = ""
    note: str | Callable[[Sequence[Record]], str] = ""
    bold: bool = False
    key: Sequence[str] = ("source", "label", "split")

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
                plain = [
                    c._replace(cell=lambda record: record.value) if c.measure else c for c in self.columns
                ]
                yield self.file.format(split=found[0].split), replace(self, columns=plain)._table(found)

    def _found(self, records: Sequence[Record], splits: Sequence[str]) -> list[Record]:
        measures = {column.measure for column in self.columns if column.measure}
        return [
            record
            for record in records
            if record.part == self.part and record.split in splits and record.measure in measures
            if self.controls or not record.control
        ]

    def _table(self, found: Sequence[Record], noted: bool = False) -> TableData:
        measured = {record.measure for record in found}
        shown = [c for c in self.columns if not c.optional or c.measure in measured]
        text = [column.title for column in shown if not column.measure]
        notes = [self.note if isinstance(self.note, str) else self.note(found)]
        notes += dict.fromkeys(column.note for column in shown)
        columns, rows = self._by_class(found, shown) if self.by_class else self._by_source(found, shown)
        return TableData(
            self.title.format(split=found[0].split, number=found[0].number),
            columns,
            rows,
            " ".join(filter(None, notes)) if noted else "",
            text=text,
            bold=[record.name for record in found if self.bold and not record.control],
        )

    def _by_source(self, found: Sequence[Record], shown: Sequence[Column]) -> Grid:
        titles: dict[str, None] = {}
        rows: dict[tuple[object, ...], dict[str, Cell]] = {}
        for column in shown:
            several = "{place}" in column.title
            titles |= {} if several else {column.title: None}
            for record in found:
                if column.measure in ("", record.measure):
                    title = column.title.format(place=record.place, number=record.number)
                    titles[title] = None
                    key = tuple(getattr(record, name) for name in self.key)
                    rows.setdefault(key, {})[title] = column.cell(record)
        return list(titles), [[row.get(title, "-") for title in titles] for row in rows.values()]

    def _by_class(self, found: Sequence[Record], shown: Sequence[Column]) -> Grid:
        titles: dict[str, None] = {}
        rows: dict[str, dict[str, Cell]] = {}
        for record in found:
            (column,) = (column for column in shown if column.measure == record.measure)
            title = column.title.format(name=record.name, label=record.label, split=record.split)
            titles[title] = None
            rows.setdefault(record.place, {})[title] = column.cell(record)
        return ["class", *titles], [[place, *(row.get(t) for t in titles)] for place, row in rows.items()]
