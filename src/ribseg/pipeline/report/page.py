"""The report of a run: `report.html`, a self-contained page."""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf

from ribseg.data.io.files import atomic_write
from ribseg.pipeline.engine.context import Context
from ribseg.pipeline.engine.store import environment
from ribseg.pipeline.report.bottleneck_report import bottleneck_figure, network_line, ratio_table
from ribseg.pipeline.report.notes import Note
from ribseg.pipeline.report.pictures import coverage_figure, picture_grid, pictured_maps
from ribseg.pipeline.report.segmenter_report import segmenter_columns, segmenter_table
from ribseg.pipeline.report.table import TableData, class_table
from ribseg.pipeline.report.tables import (
    coverage_curves,
    coverage_table,
    has_scored_masks,
    last_split,
    map_columns,
    map_tables,
    mask_columns,
    mask_table,
    number_table,
    result_lines,
)
from ribseg.pipeline.stages.bottleneck import EXAMPLES


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes:
        title: heading.
        tables: shown below the picture.
        lines: sentences below the tables.
        picture: a PNG in base64, or "".
    """

    title: str
    tables: Sequence[TableData] = ()
    lines: Sequence[str] = ()
    picture: str = ""


def write_report(context: Context, results: dict[str, Any]) -> Path:
    """Writes `report.html` and its pictures into the run's folder; returns the path."""
    templates = Environment(
        loader=PackageLoader("ribseg.pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("report.html").render(
        name=context.cfg.name,
        sections=[section for part in PARTS for section in part(context, results)],
        listings={
            "Environment": json.dumps(environment(), indent=1),
            "Configuration": OmegaConf.to_yaml(context.cfg, resolve=True),
        },
    )
    path = context.output / "report.html"
    atomic_write(path, page.encode())
    return path


def map_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section with scores of the localization maps."""
    if "localization" in results:
        found = results["localization"]
        title = f"IoU per class, {last_split(found)}, at fixed thresholds"
        per_class = class_table(title, context.data.classes, map_columns(found))
        tables = [*map_tables(found), per_class, number_table(found), *coverage_table(found)]
        curves = coverage_curves(found)
        picture = saved(context, "coverage.png", coverage_figure(curves)) if curves else ""
        yield Section("Localization maps", tables, picture=picture)


def picture_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section with images, maps and masks."""
    if pictured_maps(context, results):
        yield Section("Pictures", picture=saved(context, "grid.png", picture_grid(context, results)))


def mask_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section with scores of the pseudo masks, if there is ground truth."""
    if has_scored_masks(results):
        masks = results["pseudo_masks"]
        per_class = class_table("IoU per class", context.data.classes, mask_columns(masks))
        yield Section("Pseudo masks", [mask_table(masks), per_class])


def segmenter_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section with scores of the segmenters."""
    if "segmenter" in results:
        segmenters = results["segmenter"]
        per_class = class_table("IoU per class", context.data.classes, segmenter_columns(segmenters))
        yield Section("Segmenter", [segmenter_table(segmenters), per_class])


def run_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section with notes on data and adaptation."""
    notes = [f"Data: {Note(**row)}" for row in results.get("data", {}).get("notes", [])]
    lines = [*result_lines(results), *notes]
    if lines:
        yield Section("Run", lines=lines)


def bottleneck_section(context: Context, results: dict[str, Any]) -> Iterator[Section]:
    """The section of the toy experiment."""
    if "bottleneck" in results:
        result = results["bottleneck"]
        figure = bottleneck_figure(result, context.artefacts["bottleneck"].folder / EXAMPLES)
        picture = saved(context, "bottleneck.png", figure)
        yield Section("Information bottleneck", [ratio_table(result)], [network_line(result)], picture)


PARTS: tuple[Callable[[Context, dict[str, Any]], Iterator[Section]], ...] = (
    map_section,
    picture_section,
    mask_section,
    segmenter_section,
    run_section,
    bottleneck_section,
)


def saved(context: Context, name: str, png: bytes) -> str:
    """Writes a picture into the run's folder; returns it in base64 for the page."""
    atomic_write(context.output / name, png)
    return base64.b64encode(png).decode()
