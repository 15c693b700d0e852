"""Tables as files, for spreadsheets and for papers."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ribseg.files import atomic_write
from ribseg.pipeline.report.table import Cell, TableData

TABLES_FOLDER = "tables"  # folder in a run's, or a sweep's
# What LaTeX takes for a command, or prints as another sign.
SIGNS = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
MINUS = re.compile(r"(?<![\w.])-(?=[\d.])")


def write_table_files(folder: Path, tables: Mapping[str, TableData]) -> None:
    """Writes each table as `tables/<name>.csv` and `tables/<name>.tex` into a folder."""
    for name, table in tables.items():
        path = folder / TABLES_FOLDER / file_name(name)
        columns = [column.replace("\n", " ") for column in table.columns]
        write_csv(path.with_suffix(".csv"), columns, table.rows)
        atomic_write(path.with_suffix(".tex"), latex(table).encode())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Writes a table as CSV, with the names of the columns in its first line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    atomic_write(path, text.getvalue().encode())


def file_name(name: str) -> str:
    """A name as that of a file, without ending.

    >>> file_name("Localization maps on val, mIoU in percent")
    'localization_maps_on_val_miou_in_percent'
    """
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def latex(table: TableData) -> str:
    """A table for LaTeX's package booktabs; title and note are comments above it."""
    said = [f"% {line}" for text in (table.title, table.note) for line in text.splitlines()]
    places = "".join("l" if table.aligned_left(place) else "r" for place in range(len(table.columns)))
    return "\n".join(
        [
            *said,
            r"% \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{places}}}",
            r"\toprule",
            latex_row(table.columns),
            r"\midrule",
            *map(latex_row, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def latex_row(cells: Sequence[Cell]) -> str:
    r"""A row of a table for LaTeX.

    >>> print(latex_row(["a_b & c", "-1.5", "10 %"]))
    a\_b \& c & $-$1.5 & 10 \% \\
    """
    return " & ".join(map(latex_cell, map(str, cells))) + r" \\"


def latex_cell(text: str) -> str:
    """A text on one line as LaTeX prints it; what may follow a line break as its argument is guarded."""
    line = " ".join(text.split())
    escaped = MINUS.sub("$-$", "".join(SIGNS.get(sign, sign) for sign in line))
    return f"{{}}{escaped}" if escaped[:1] in ("[", "*") else escaped
