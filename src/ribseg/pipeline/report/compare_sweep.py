"""The part of a comparison about runs of a sweep that differ in one or two numbers."""

import math
from collections.abc import Iterator

from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.report.compare import SEED, Comparison, run_scores
from ribseg.pipeline.report.figures import figure
from ribseg.pipeline.report.page import Section
from ribseg.plot import grid_figure, sweep_figure

Key = tuple[float, ...]  # values of the swept settings
Grid = dict[tuple[float, float], list[float]]  # of two settings
Swept = dict[str, dict[Key, list[float]]]  # label of a method -> values -> mIoU of each repetition


def sweep_section(session: Session, comparison: Comparison) -> Iterator[Section]:
    """The section with the mIoU on the last split over one swept number, or over two."""
    settings = swept_numbers(comparison)
    if not comparison.rows or len(settings) not in (1, 2):
        return
    names, split = list(settings), list(comparison.rows)[-1]
    scores = swept_scores(comparison, split, settings)
    title = f"mIoU on {split} over {' and '.join(names)}; means and standard deviations over seeds"
    if len(names) == 1:
        lines = {label: {key[0]: found for key, found in line.items()} for label, line in scores.items()}
        drawn = sweep_figure(lines, names[0])
    else:
        grids = {label: {(key[0], key[1]): grid[key] for key in grid} for label, grid in scores.items()}
        # A map of equal cells shows nothing.
        varying = {label: grid for label, grid in grids.items() if len(set(map(tuple, grid.values()))) > 1}
        drawn = grid_figure(varying or grids, (names[0], names[1]))
    yield Section("Sweep", figures=[figure(session, "sweep", drawn, title)])


def swept_numbers(comparison: Comparison) -> dict[str, list[float]]:
    """Setting -> its number in each run, of the settings besides the seed in which the runs differ.

    Empty if one of them is no number in some run: then the runs are no points on axes.
    """
    texts = {name: values for name, values in comparison.settings.items() if name != SEED}
    numbers = {name: [number_of(text) for text in values] for name, values in texts.items()}
    known = {name: [value for value in values if value is not None] for name, values in numbers.items()}
    return known if all(len(known[name]) == len(texts[name]) for name in texts) else {}


def number_of(text: str) -> float | None:
    """The finite number that a text is; None for any other.

    >>> number_of("8e-06"), number_of("auto"), number_of("nan")
    (8e-06, None, None)
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def swept_scores(comparison: Comparison, split: str, settings: dict[str, list[float]]) -> Swept:
    """The mIoU of all methods without controls, by the values of the swept settings."""
    numbers = zip(*settings.values(), strict=True)
    places = {run.name: values for run, values in zip(comparison.runs, numbers, strict=True)}
    shown = {row.maps.source: row.maps.plain_label for row in comparison.rows[split] if not row.maps.control}
    found: Swept = {label: {} for label in shown.values()}
    for (source, run), miou in run_scores(comparison.rows[split]).items():
        if source in shown:
            found[shown[source]].setdefault(places[run], []).append(miou)
    return found
