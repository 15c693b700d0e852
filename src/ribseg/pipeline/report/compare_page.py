"""The page of a comparison of runs: `comparison.html`, its numbers in `comparison.json`, and its tables."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ribseg.data.io.maps import read_records
from ribseg.files import atomic_write, write_json
from ribseg.metrics import pooled_scores
from ribseg.metrics.masks import known
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.report.answer import BASELINE
from ribseg.pipeline.report.compare import ComparedMaps, Comparison, plain_values, run_scores, sentences
from ribseg.pipeline.report.compare_sweep import sweep_section
from ribseg.pipeline.report.figures import class_bars, figure
from ribseg.pipeline.report.finished import FinishedRun
from ribseg.pipeline.report.gallery import Gallery, make_gallery
from ribseg.pipeline.report.page import Section, command, render, time_table
from ribseg.pipeline.report.pictures import MapSeries, MaskSeries, mask_series_of
from ribseg.pipeline.report.records import Record
from ribseg.pipeline.report.sweep_tables import sweep_tables
from ribseg.pipeline.report.table import Column, Declared, TableData
from ribseg.pipeline.report.table_files import write_table_files
from ribseg.pipeline.report.tables import DIFFERENCE, INTERVAL, ITS_INTERVAL, MAP, MIOU_AT, PUBLISHED
from ribseg.pipeline.stages.evaluate import maps_reader, shown_threshold
from ribseg.plot import threshold_figure
from ribseg.plot.sweeps import mean_and_deviation

PAGE, NUMBERS = "comparison.html", "comparison.json"
MOST_BARS = 6  # columns of the figure with a bar per class
NOTE = (
    "mIoU in percent over the images that all runs have evaluated, each row at its own threshold: the best "
    "one of the other split, or with a single split its own. Diff.: to the first run with maps of this "
    "source. Intervals: 95 % bootstrap intervals over images, of the mIoU and, paired, of the difference; "
    "the joint ones are wide enough to hold together (Bonferroni): for the best of many runs. * Controls."
)
DIFFERENCES = Declared(
    "localization",
    (
        MAP,
        Column("mIoU (at)", "miou", MIOU_AT),
        Column("interval", "miou", INTERVAL),
        Column("diff.", "difference", DIFFERENCE),
        Column("of diff.", "difference", ITS_INTERVAL),
        Column("joint", "joint", ITS_INTERVAL),
        PUBLISHED,
    ),
    "Localization maps on {split}, {number:,} images",
    splits="each",
    note=NOTE,
    bold=True,
)


def write_comparison(
    session: Session, runs: Sequence[FinishedRun], resamples: int
) -> tuple[Path, Comparison]:
    """Writes page, numbers, tables and figures of a comparison; returns the page's path and the comparison.

    Args:
        session: of the first run, with the folder of the comparison as its output; the gallery shows its
            images.
        runs: at least two.
        resamples: of the bootstrap over images.

    Raises:
        DataError: the runs cannot be compared, see `Comparison`.
    """
    comparison = Comparison(runs, resamples)
    write_json(session.output / NUMBERS, plain_values(comparison))
    results = result_tables(comparison)
    named = {f"results_{table.title}": table for table in results}
    write_table_files(session.output, map_tables(comparison) | named)
    page = render(
        title=f"ribseg: {len(runs)} runs",
        facts={run.name: str(run.folder) for run in runs},
        answers=sentences(comparison),
        opening="",
        before=[
            *difference_section(session, comparison),
            *sweep_section(session, comparison),
            settings_section(comparison),
            Section("All results", results),
        ],
        gallery=comparison_gallery(session, comparison),
        after=[run_section(comparison)],
    )
    atomic_write(session.output / PAGE, page.encode())
    return session.output / PAGE, comparison


def comparison_tables(comparison: Comparison) -> list[TableData]:
    """The tables for the terminal: differences and means over seeds by split, else all results."""
    return list(map_tables(comparison).values()) or result_tables(comparison)


def map_tables(comparison: Comparison) -> dict[str, TableData]:
    """Name of a file -> table of localization maps: differences and means over seeds, by split."""
    tables = DIFFERENCES.tables(row_records(comparison))
    found = {f"differences_{split}": table for split, table in zip(comparison.rows, tables, strict=True)}
    repeated = comparison.rows if comparison.repetitions else ()
    return found | {f"seeds_{split}": seed_table(comparison, split) for split in repeated}


def result_tables(comparison: Comparison) -> list[TableData]:
    """All results, as a sweep prints them."""
    return sweep_tables([{"overrides": [run.name], "results": run.results} for run in comparison.runs])


def row_records(comparison: Comparison) -> list[Record]:
    """The scores of all maps and their differences, with the published mIoU where a run has one."""
    found = []
    for split, rows in comparison.rows.items():
        for row in rows:
            maps, number = row.maps, len(comparison.images[split])
            base = Record("localization", maps.source, maps.label, maps.control, split, number=number)
            one = replace(base, value=row.miou, interval=row.bounds, threshold=row.threshold)
            found.append(replace(one, measure="miou"))
            if row.difference is not None:
                _, value, bounds, joint = row.difference
                found.append(replace(base, measure="difference", value=value, interval=bounds))
                found.append(replace(base, measure="joint", value=value, interval=joint))
            published = maps.scores(split).get("published")
            if published:
                found.append(replace(base, measure="published", value=published))
    return found


def seed_table(comparison: Comparison, split: str) -> TableData:
    """The table of mean and standard deviation over runs that differ in their seeds alone."""
    found = comparison.rows[split]
    scores = run_scores(found)
    labels = {row.maps.source: row.maps.plain_label for row in found}
    rows = []
    for name, runs in comparison.repetitions.items():
        for source, label in labels.items():
            values = [scores[source, run.name] for run in runs if (source, run.name) in scores]
            if len(values) > 1:
                mean, deviation = mean_and_deviation(values)
                rows.append([name, label, str(len(values)), f"{mean:.1f}", f"{deviation:.1f}"])
    columns = ["runs", "maps", "seeds", "mean mIoU", "standard deviation"]
    return TableData(f"Over seeds, {split}, percent", columns, rows, text=("maps",))


def difference_section(session: Session, comparison: Comparison) -> Iterator[Section]:
    """The section on localization maps: differences, curves over thresholds, and bars per class."""
    if not comparison.rows:
        return
    split, rows = list(comparison.rows.items())[-1]
    shown = [row.maps for row in rows if not row.maps.control]
    curves = {maps.label: maps.scores(split)["curve"] for maps in shown}
    title = f"Scores on {split} over the threshold, each run on all of its images"
    figures = [figure(session, "curves", threshold_figure(curves), title)]
    if len(shown) <= MOST_BARS:
        scores, names = [], ("background", *session.data.classes)
        for maps in shown:
            counts = maps.runs[0].counts[split].of(maps.source, comparison.images[split])
            one = Record("localization", maps.source, maps.label, measure="class_iou")
            pairs = zip(names, known(pooled_scores(counts).iou), strict=True)
            scores += [replace(one, place=name, value=value) for name, value in pairs]
        figures.append(class_bars(session, "classes", scores, f"IoU per class, {split}"))
    yield Section("Localization maps", list(map_tables(comparison).values()), figures=figures)


def settings_section(comparison: Comparison) -> Section:
    """The section with the settings in which the runs differ."""
    names = [run.name for run in comparison.runs]
    rows = [[setting, *values] for setting, values in comparison.settings.items()]
    if rows:
        return Section("Settings", [TableData("Settings that differ", ["setting", *names], rows, text=names)])
    return Section("Settings", lines=["All settings of the runs are equal."])


def run_section(comparison: Comparison) -> Section:
    """The section with time per stage and the command of each run."""
    repeat = {run.name: command(run.folder) for run in comparison.runs}
    listings = {f"Command of {name}": text for name, text in repeat.items() if text}
    times = {run.name: time_table(run.artefacts) for run in comparison.runs}
    tables = [replace(table, title=f"Time per stage, {name}") for name, table in times.items()]
    return Section("Runs", closed=tables, listings=listings)


def comparison_gallery(session: Session, comparison: Comparison) -> Gallery | None:
    """The gallery of the images that all runs evaluated, with the maps and masks of each run."""
    if not comparison.images:
        return None
    evals = [(session.data.evals[split], set(ids)) for split, ids in comparison.images.items()]
    folders = [folder.without(set(folder.ids) - common) for folder, common in evals]
    baseline = gallery_baseline(comparison)
    shown = [one for one in comparison.maps if not one.control]
    shown.sort(key=lambda one: one.source != baseline.source)  # stable: the compared maps come first
    maps = [map_series(one, comparison) for one in shown]
    return make_gallery(session, folders, maps, mask_series(comparison), baseline.name)


def gallery_baseline(comparison: Comparison) -> ComparedMaps:
    """The maps with which the gallery compares: the first run's, of the first method that differs by run."""
    shown = [one for one in comparison.maps if not one.control]
    several = [one.source for one in shown if sum(one.source == other.source for other in shown) > 1]
    chosen = next(iter(several), BASELINE)
    return next((one for one in shown if one.source == chosen), shown[0])


def map_series(maps: ComparedMaps, comparison: Comparison) -> MapSeries:
    """The column of some maps, with the scores of the compared images."""
    run = maps.runs[0]
    source = run.sources[maps.source]
    folder = run.artefacts[source.stage].folder
    return MapSeries(
        maps.name,
        maps.label,
        maps_reader(folder, source),
        {split: shown_threshold(maps.scores(split)) for split in comparison.images},
        {split: run.counts[split].iou(maps.source, ids) for split, ids in comparison.images.items()},
        read_records(folder),
    )


def mask_series(comparison: Comparison) -> list[MaskSeries]:
    """The columns of the runs' masks, each folder of the store once."""
    found: dict[Any, tuple[MaskSeries, list[str]]] = {}
    for run in comparison.evaluated:
        for series in mask_series_of(run.results):
            found.setdefault((series.label, series.folder), (series, []))[1].append(run.name)
    return [
        replace(series, name=f"{series.name}/{names[0]}", label=f"{series.label}, {' = '.join(names)}")
        for series, names in found.values()
    ]
