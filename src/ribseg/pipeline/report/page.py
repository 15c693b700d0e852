"""The report of a run: `report.html`, one self-contained page."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from omegaconf import OmegaConf

from ribseg.data.check.note import Note
from ribseg.files import atomic_write
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import map_sources
from ribseg.pipeline.report.answer import BASELINE, answers, network_line, result_lines
from ribseg.pipeline.report.bottleneck_report import bottleneck_figure
from ribseg.pipeline.report.columns import map_series_of, mask_series_of, true_masks
from ribseg.pipeline.report.finished import OVERRIDES, overrides_of
from ribseg.pipeline.report.gallery import Gallery, make_gallery
from ribseg.pipeline.report.pictures import picture_grid
from ribseg.pipeline.report.records import Record, records_of, select, series, splits_of
from ribseg.pipeline.report.table import Sortable, TableData
from ribseg.pipeline.report.tables import DETAILS, SECTIONS, run_records, shown_tables
from ribseg.pipeline.stages.bottleneck import EXAMPLES
from ribseg.plot import (
    adaptation_figure,
    class_figure,
    coverage_figure,
    group_figure,
    png_of,
    svg_of,
    threshold_figure,
)
from ribseg.plot.style import MAPS as MAP_COLOURS
from ribseg.store.artefact import Artefact

if TYPE_CHECKING:
    from matplotlib.figure import Figure


GROUPINGS = {"by_number_of_classes": "number of classes", "by_object_size": "object size"}


class Drawing(NamedTuple):
    """A figure of a page: an SVG element, and its caption."""

    drawing: Markup
    title: str


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
        title: heading.
        tables: shown below the sentences.
        lines: sentences.
        figures: with captions, below the tables.
        closed: tables that are shown only when they are opened, below the others.
        listings: title -> text in a fixed-width font.
    """

    title: str
    tables: Sequence[TableData] = ()
    lines: Sequence[str] = ()
    figures: Sequence[Drawing] = ()
    closed: Sequence[TableData] = ()
    listings: Mapping[str, str] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return self.title.lower().replace(" ", "-")


def write_report(context: Context, results: dict[str, Any]) -> Path:
    """Writes `report.html` and its figures into the run's folder; returns the path."""
    grid = picture_grid(context, results)
    if grid:
        atomic_write(context.output / "grid.png", grid)
    after = (adaptation_section, data_section, run_section)
    path = context.output / "report.html"
    page = render(
        "report.html",
        title=f"ribseg: {context.cfg.name}",
        facts=facts(context, results),
        answers=answers(records_of(results)),
        before=list(score_sections(context, results)),
        gallery=gallery(context, results),
        after=[section for part in after for section in part(context, results)],
    )
    atomic_write(path, page.encode())
    return path


def render(template: str, **values: Any) -> str:
    """A page from a template; everything that is filled in is escaped."""
    templates = Environment(
        loader=PackageLoader("ribseg.pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(template).render(**values, colour_map=colour_map())


def colour_map() -> list[list[int]]:
    """The 256 RGB colours of localization maps, for the page's script."""
    from matplotlib import colormaps

    return [[round(255 * part) for part in colormaps[MAP_COLOURS](value)[:3]] for value in range(256)]


def facts(context: Context, results: Mapping[str, Any]) -> dict[str, str]:
    """What ran, with which data: name -> text, for the head of the page."""
    found = {"stages": ", ".join(context.cfg.run), "seed": str(results["seed"])}
    made = results["environment"]
    found["ribseg"] = " ".join(made[key] for key in ("ribseg", "commit") if key in made)
    if "data" in results or "localization" in results:
        data = context.data
        sizes = {data.train.split: len(data.train)} | {name: len(each) for name, each in data.evals.items()}
        splits = ", ".join(f"{name} {number:,}" for name, number in sizes.items())
        found = {"data": f"{data.train.origin}: {splits} images, {data.train.num_classes} classes"} | found
    return found


def gallery(context: Context, results: dict[str, Any]) -> Gallery | None:
    """The gallery of a run's maps and masks; None without any, or with report.images=0."""
    settings = context.cfg.report
    maps = map_series_of(context, results) if "localization" in results or "methods" in results else []
    if not maps or not settings.images:
        return None
    folders = list(context.data.evals.values()) or [context.data.train]
    return make_gallery(
        folders,
        maps,
        [*mask_series_of(results), *true_masks(folders)],
        BASELINE if any(series.name == BASELINE for series in maps) else None,
        settings.images,
        1e6 * settings.megabytes,
        context.track,
        context.cfg.evaluate.workers,
    )


def score_sections(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The sections with tables and figures of scores."""
    drawn = {"localization": map_figures, "segmenter": segmenter_figures, "bottleneck": bottleneck_figures}
    records = run_records(context, results)
    for title, parts in SECTIONS.items():
        found = [one for one in records if one.part in parts]
        if any(one.part == parts[0] for one in found):
            lines = [network_line(results["bottleneck"])] if "bottleneck" in parts else []
            figures = drawn[parts[0]](context, found) if parts[0] in drawn else []
            yield Section(title, shown_tables(found), lines, figures, shown_tables(found, DETAILS))


def map_figures(context: Context, records: Sequence[Record]) -> list[Drawing]:
    """The figures of the methods' scores on the last split."""
    split = splits_of(records, "localization")[-1]
    last = [one for one in records if one.split == split]
    methods = [one for one in last if not one.control]
    figures = [
        figure(context, "curves", threshold_figure(curves(methods)), f"Scores on {split} over the threshold"),
        class_bars(context, "classes", methods, f"IoU per class, {split}, at fixed thresholds"),
        figure(context, "groups", group_figure(*groups(methods)), f"mIoU on {split} in groups of images"),
    ]
    coverage = [replace(one, label=one.name) for one in last if one.measure == "coverage"]
    if coverage:
        title = f"Coverage of the objects on {split} by distance from CAM's peak"
        figures.append(figure(context, "coverage", coverage_figure(series(coverage)), title))
    return figures


def segmenter_figures(context: Context, records: Sequence[Record]) -> list[Drawing]:
    """The figure of the segmenters' IoU of each class."""
    named = [replace(one, label=f"{one.label}, {one.split}") for one in records]
    return [class_bars(context, "segmenters", named, "IoU per class of the segmenters")]


def bottleneck_figures(context: Context, records: Sequence[Record]) -> list[Drawing]:
    """The figure of the toy experiment."""
    examples = context.artefacts["bottleneck"].folder / EXAMPLES
    title = "Gradients per layer before and after RIB, and high gradient ratios"
    return [figure(context, "bottleneck", bottleneck_figure(records, examples), title)]


def curves(records: Sequence[Record]) -> dict[str, dict[str, list[float | None]]]:
    """Label -> measure -> values over all thresholds."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for record in records:
        if record.measure == "curve":
            values = found.setdefault(record.label, {"thresholds": []})
            values.setdefault(record.place, []).append(record.value)
            if record.place == "miou":
                values["thresholds"].append(record.threshold)
    return found


def groups(
    records: Sequence[Record],
) -> tuple[dict[str, dict[str, list[float | None]]], dict[str, list[str]]]:
    """The mIoU in groups of images.

    Returns:
        Grouping -> label -> mIoU of each group; grouping -> names of its groups.
    """
    values, names = {}, {}
    for measure, title in GROUPINGS.items():
        found = select(records, "localization", measure)
        if found:
            values[title] = series(found)
            names[title] = list(dict.fromkeys(f"{one.place}\n(n = {one.number})" for one in found))
    return values, names


def class_bars(context: Context, name: str, records: Sequence[Record], title: str) -> Drawing:
    """The figure of the IoU of all classes that occur for some source; by split for segmenters."""
    found = [one for one in records if one.measure == "class_iou"]
    occurring = {one.place for one in found if one.value is not None}
    names = list(dict.fromkeys(one.place for one in found if one.place in occurring))
    shown = series([one for one in found if one.place in occurring])
    return figure(context, name, class_figure(shown, names), title)


def adaptation_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section on steps, stop rules, logits and areas of the methods that adapt the classifier."""
    labels = {name: source.label for name, source in map_sources(context.cfg).items()}
    found = {labels[name]: values for name, values in results.get("methods", {}).items() if values["logits"]}
    lines = result_lines(results)
    title = "Mean logit and area of the maps over the steps k"
    figures = [figure(context, "adaptation", adaptation_figure(found), title)] if found else []
    if figures or lines:
        yield Section("Adaptation", lines=lines, figures=figures)


def data_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section with notes on unusual data."""
    notes = [str(Note(**row)) for row in results.get("data", {}).get("notes", [])]
    if notes:
        yield Section("Notes on the data", lines=notes)


def run_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section with time per stage, command, environment and settings."""
    repeat = command(context.output)
    listings = {"Command": repeat} if repeat else {}
    listings["Environment"] = json.dumps(results["environment"], indent=1)
    listings["Configuration"] = OmegaConf.to_yaml(context.cfg, resolve=True)
    finished = {name: a for name, a in context.artefacts.items() if name in results["store"]}
    tables = [time_table(finished)] if finished else []
    yield Section("Run", tables, listings=listings)


def command(output: Path) -> str:
    """The command that repeats a run, from what Hydra recorded in the run's folder; "" without a record."""
    if not (output / OVERRIDES).is_file():
        return ""
    return shlex.join(["python", "train.py", *overrides_of(output)])


def time_table(finished: Mapping[str, Artefact]) -> TableData:
    """The table of the stages: time, when and where they were computed."""
    rows, total = [], 0.0
    for name, artefact in finished.items():
        manifest = artefact.manifest
        total += manifest["seconds"]
        moment = str(manifest.get("finished", "-")).replace("T", " ").removesuffix("+00:00")
        seconds = Sortable(duration(manifest["seconds"]), manifest["seconds"])
        rows.append([name, seconds, moment, artefact.folder.name])
    columns = ["stage", "time", "finished (UTC)", "in the store"]
    return TableData("Time per stage", columns, rows, f"Sum: {duration(total)}.", text=columns[2:])


def duration(seconds: float) -> str:
    """A duration as text.

    >>> duration(3.24), duration(75), duration(7322)
    ('3.2 s', '1:15 min', '2:02 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = divmod(round(seconds), 60), divmod(round(seconds / 60), 60)
    return f"{minutes[0]}:{minutes[1]:02} min" if seconds < 3600 else f"{hours[0]}:{hours[1]:02} h"


def figure(context: Context, name: str, drawn: "Figure", title: str) -> Drawing:
    """Writes a figure as PNG into the run's folder; returns it as SVG for the page."""
    atomic_write(context.output / f"{name}.png", png_of(drawn, dpi=150))
    return Drawing(Markup(svg_of(drawn, title)), title)
