"""Figures of sweeps: mIoU over one setting, or over two."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ribseg.plot.scores import draw_legend, new_figure
from ribseg.plot.style import DARK, MAPS, line_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPAN = 10  # of positive values, highest over lowest, from which their axis is logarithmic
Line = Mapping[float, Sequence[float]]  # value of the setting -> mIoU of each repetition
Grid = Mapping[tuple[float, float], Sequence[float]]  # values of both settings -> mIoU of each repetition


def sweep_figure(lines: Mapping[str, Line], setting: str) -> "Figure":
    """A figure of the mIoU over a setting: means with a line per method, standard deviations as bars.

    Args:
        lines: name of a method -> value of the setting -> mIoU in [0, 1] of each repetition, as with other
            seeds; a single one has no bar.
        setting: its name.
    """
    figure = new_figure(6.4, 3.6)
    axis = figure.subplots()
    for number, (name, line) in enumerate(lines.items()):
        places = sorted(line)
        means, bars = zip(*(mean_and_deviation(line[place]) for place in places), strict=True)
        style = line_style(number)
        axis.errorbar(places, means, bars, label=name, capsize=3, marker="o", markersize=4, **style)
    _mark(axis, sorted({place for line in lines.values() for place in line}))
    axis.set_xlabel(setting, parse_math=False)
    axis.set_ylabel("mIoU, percent")
    axis.grid(alpha=0.3)
    draw_legend(figure)
    return figure


def grid_figure(grids: Mapping[str, Grid], settings: tuple[str, str]) -> "Figure":
    """A figure of the mIoU over two settings: a heat map per method, with mean and standard deviation.

    Args:
        grids: name of a method -> values of both settings -> mIoU in [0, 1] of each repetition; cells may be
            missing.
        settings: their names, the first one below and the second one beside the maps.
    """
    columns, rows = (sorted({key[place] for grid in grids.values() for key in grid}) for place in (0, 1))
    wide = max(3.2, 0.8 * len(columns) + 1.2)
    figure = new_figure(wide * len(grids) + 0.8, max(2.6, 0.5 * len(rows) + 1.4))
    panels = figure.subplots(1, len(grids), squeeze=False)[0]
    means = [_means(grid, columns, rows) for grid in grids.values()]
    low, high = np.nanmin(means), np.nanmax(means)
    for axis, (name, grid), values in zip(panels, grids.items(), means, strict=True):
        image = axis.imshow(values, cmap=MAPS, vmin=low, vmax=high, origin="lower", aspect="auto")
        axis.set_title(name, fontsize=9, parse_math=False)
        axis.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
        axis.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
        axis.set_xlabel(settings[0], parse_math=False)
        _write_cells(axis, grid, columns, rows, (low + high) / 2)
    panels[0].set_ylabel(settings[1], parse_math=False)
    figure.colorbar(image, ax=list(panels), label="mIoU, percent")
    return figure


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of fractions, in percent; the latter NaN of a single value.

    >>> mean_and_deviation([0.5, 0.75]), mean_and_deviation([0.5])
    ((62.5, 17.67766952966369), (50.0, nan))
    """
    percents = 100 * np.asarray(values, dtype=float)
    return float(percents.mean()), float(percents.std(ddof=1)) if len(percents) > 1 else float("nan")


def _mark(axis: Any, places: Sequence[float]) -> None:
    """Puts a tick at each value that was tried."""
    if places[0] > 0 and places[-1] >= SPAN * places[0]:
        axis.set_xscale("log")
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.minorticks_off()


def _means(grid: Grid, columns: Sequence[float], rows: Sequence[float]) -> np.ndarray:
    """(rows, columns) means in percent, NaN where there is no value."""
    cells = [[grid.get((column, row)) for column in columns] for row in rows]
    return np.array([[np.nan if not each else mean_and_deviation(each)[0] for each in row] for row in cells])


def _write_cells(
    axis: Any, grid: Grid, columns: Sequence[float], rows: Sequence[float], middle: float
) -> None:
    for (column, row), values in grid.items():
        mean, deviation = mean_and_deviation(values)
        text = f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f}\n±{deviation:.1f}"
        place = columns.index(column), rows.index(row)
        colour = DARK if mean > middle else "white"
        axis.text(*place, text, ha="center", va="center", fontsize=8, color=colour)
