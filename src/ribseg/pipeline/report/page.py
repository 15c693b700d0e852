"""The report of a run: `report.html`, one self-contained page."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from omegaconf import OmegaConf

from ribseg.data.check.note import Note
from ribseg.files import atomic_write
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import map_sources
from ribseg.pipeline.report.answer import BASELINE, answers
from ribseg.pipeline.report.bottleneck_report import bottleneck_figure, network_line, ratio_table
from ribseg.pipeline.report.columns import map_columns_of, mask_columns_of, shown_splits, true_mask_column
from ribseg.pipeline.report.cost_tables import cost_table, time_table
from ribseg.pipeline.report.gallery import Gallery, make_gallery
from ribseg.pipeline.report.mask_tables import (
    has_scored_masks,
    mask_columns,
    mask_errors,
    mask_group_tables,
    mask_table,
)
from ribseg.pipeline.report.pictures import picture_grid, pictured_maps
from ribseg.pipeline.report.segmenter_report import (
    segmenter_columns,
    segmenter_errors,
    segmenter_table,
)
from ribseg.pipeline.report.table import Columns, TableData, class_table
from ribseg.pipeline.report.tables import (
    coverage_curves,
    coverage_table,
    error_table,
    group_curves,
    last_split,
    localization_table,
    map_columns,
    map_errors,
    map_tables,
    number_table,
    result_lines,
    size_table,
    threshold_curves,
)
from ribseg.pipeline.stages.bottleneck import EXAMPLES
from ribseg.pipeline.sweep import OVERRIDES, overrides_of
from ribseg.plot import (
    adaptation_figure,
    class_figure,
    coverage_figure,
    group_figure,
    png_of,
    svg_of,
    threshold_figure,
)
from ribseg.plot.style import MAPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    if pictured_maps(context, results):
        atomic_write(context.output / "grid.png", picture_grid(context, results))
    path = context.output / "report.html"
    page = render(
        "report.html",
        title=f"ribseg: {context.cfg.name}",
        facts=facts(context, results),
        answers=answers(results),
        before=[section for part in BEFORE for section in part(context, results)],
        gallery=gallery(context, results),
        after=[section for part in AFTER for section in part(context, results)],
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

    return [[round(255 * part) for part in colormaps[MAPS](value)[:3]] for value in range(256)]


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
    maps = map_columns_of(context, results) if "localization" in results or "methods" in results else []
    if not maps or not settings.images:
        return None
    folders = shown_splits(context)
    return make_gallery(
        folders,
        maps,
        [*mask_columns_of(results), *true_mask_column(folders)],
        BASELINE if any(series.name == BASELINE for series in maps) else None,
        settings.images,
        1e6 * settings.megabytes,
        context.track,
        context.cfg.evaluate.workers,
    )


def map_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The sections with scores of the localization maps."""
    if "localization" not in results:
        return
    found, classes = results["localization"], context.data.classes
    split = last_split(found)
    title = f"IoU per class, {split}, at fixed thresholds"
    per_class = class_table(title, classes, map_columns(found))
    curves, groups = threshold_curves(found), group_curves(found)
    figures = [figure(context, "curves", threshold_figure(curves), f"Scores on {split} over the threshold")]
    figures += [class_bars(context, "classes", methods_of(found), title)]
    figures += [figure(context, "groups", group_figure(*groups), f"mIoU on {split} in groups of images")]
    if coverage := coverage_curves(found):
        title = f"Coverage of the objects on {split} by distance from CAM's peak"
        figures.append(figure(context, "coverage", coverage_figure(coverage), title))
    errors = error_table(map_errors(found), classes, f"Errors per class, {split}, at fixed thresholds")
    details = [per_class, *errors, number_table(found), *size_table(found), *coverage_table(found)]
    tables = [*map_tables(found), *localization_table(found)]
    tables += [cost_table(results["methods"])] if results.get("methods") else []
    yield Section("Localization maps", tables, figures=figures, closed=details)


def methods_of(localization: Mapping[str, Any]) -> Columns:
    """Method -> IoU per class, without controls, which would crowd the bars."""
    return map_columns({name: values for name, values in localization.items() if not values["control"]})


def class_bars(context: Context, name: str, columns: Columns, title: str) -> Drawing:
    """The figure of the IoU of all classes that occur in some column."""
    names = ["background", *context.data.classes]
    occurs = [any(values[c] is not None for values in columns.values()) for c in range(len(names))]
    chosen = [c for c, there in enumerate(occurs) if there]
    shown = {label: [values[c] for c in chosen] for label, values in columns.items()}
    return figure(context, name, class_figure(shown, [names[c] for c in chosen]), title)


def mask_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section with scores of the pseudo masks, if there is ground truth."""
    if has_scored_masks(results):
        masks, classes = results["pseudo_masks"], context.data.classes
        split = list(context.data.evals)[-1]
        details = [
            class_table("IoU per class", classes, mask_columns(masks)),
            *error_table(mask_errors(masks), classes, f"Errors per class, {split}"),
            *mask_group_tables(masks),
        ]
        yield Section("Pseudo masks", [mask_table(masks)], closed=details)


def segmenter_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section with scores of the segmenters."""
    if "segmenter" in results:
        columns = segmenter_columns(results["segmenter"])
        classes, found = context.data.classes, results["segmenter"]
        per_class = class_table("IoU per class", classes, columns)
        errors = error_table(segmenter_errors(found), classes, "Errors per class")
        bars = class_bars(context, "segmenters", columns, "IoU per class of the segmenters")
        yield Section("Segmenter", [segmenter_table(found)], figures=[bars], closed=[per_class, *errors])


def adaptation_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section on steps, stop rules, logits and areas of the methods that adapt the classifier."""
    labels = {name: source.label for name, source in map_sources(context.cfg).items()}
    found = {labels[name]: values for name, values in results.get("methods", {}).items() if values["logits"]}
    lines = result_lines(results)
    title = "Mean logit and area of the maps over the steps k"
    figures = [figure(context, "adaptation", adaptation_figure(found), title)] if found else []
    if figures or lines:
        yield Section("Adaptation", lines=lines, figures=figures)


def bottleneck_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section of the toy experiment."""
    if "bottleneck" in results:
        result = results["bottleneck"]
        drawn = bottleneck_figure(result, context.artefacts["bottleneck"].folder / EXAMPLES)
        title = "Gradients per layer before and after RIB, and high gradient ratios"
        figures = [figure(context, "bottleneck", drawn, title)]
        yield Section("Information bottleneck", [ratio_table(result)], [network_line(result)], figures)


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


Part = Callable[[Context, dict[str, Any]], Iterator[Section]]
BEFORE: tuple[Part, ...] = (map_section, mask_section, segmenter_section, bottleneck_section)
AFTER: tuple[Part, ...] = (adaptation_section, data_section, run_section)


def figure(context: Context, name: str, drawn: "Figure", title: str) -> Drawing:
    """Writes a figure as PNG into the run's folder; returns it as SVG for the page."""
    atomic_write(context.output / f"{name}.png", png_of(drawn, dpi=150))
    return Drawing(Markup(svg_of(drawn, title)), title)
