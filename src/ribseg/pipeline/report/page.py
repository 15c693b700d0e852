"""The page that a run leaves: `report.html`, complete in itself."""

import base64
import html
import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ribseg.data.io.files import atomic_write
from ribseg.pipeline.engine.context import Context
from ribseg.pipeline.engine.store import environment
from ribseg.pipeline.report.bottleneck_report import (
    RATIO_NOTE,
    TARGET_HEADER,
    bottleneck_figure,
    gradient_header,
    gradient_rows,
    network_line,
    target_rows,
)
from ribseg.pipeline.report.notes import Note
from ribseg.pipeline.report.pictures import picture_grid, pictured_maps
from ribseg.pipeline.report.segmenter_report import HEADER, segmenter_columns, segmenter_rows
from ribseg.pipeline.report.tables import (
    MASK_HEADER,
    NOTE,
    Columns,
    adaptation_line,
    has_scored_masks,
    map_columns,
    mask_columns,
    mask_rows,
    policy_line,
    rows,
    skipped_line,
)
from ribseg.pipeline.stages.bottleneck import EXAMPLES


def write_report(context: Context, results: dict[str, Any]) -> Path:
    """Writes `report.html`, complete in itself, and `grid.png` beside it."""
    parts = ["<h1>ribseg: " + html.escape(context.cfg.name) + "</h1>"]
    if "localization" in results:
        header, cells = rows(results["localization"])
        parts += ["<h2>Localization maps</h2>", _html_table(header, cells), f"<p>{html.escape(NOTE)}</p>"]
        parts += [
            "<h2>IoU per class, at the best threshold</h2>",
            _per_class(context, map_columns(results["localization"])),
        ]
    if pictured_maps(context, results):
        grid = picture_grid(context, results)
        atomic_write(context.output / "grid.png", grid)
        parts += ["<h2>Pictures</h2>", _html_image(grid)]
    if has_scored_masks(results):
        parts += ["<h2>Pseudo masks</h2>", _html_table(list(MASK_HEADER), mask_rows(results["pseudo_masks"]))]
        parts.append(_per_class(context, mask_columns(results["pseudo_masks"])))
    if "segmenter" in results:
        parts += ["<h2>Segmenter</h2>", _html_table(list(HEADER), segmenter_rows(results["segmenter"]))]
        parts.append(_per_class(context, segmenter_columns(results["segmenter"])))
    for facts in results.get("methods", {}).values():
        if facts["steps_mean"] > 0:
            parts.append(f"<p>{html.escape(adaptation_line(facts))}</p>")
    if "policy" in results.get("prepared", {}):
        parts.append(f"<p>{html.escape(policy_line(results['prepared']))}</p>")
    if "skipped" in results:
        parts.append(f"<p><b>{html.escape(skipped_line(results['skipped']))}</b></p>")
    for row in results.get("data", {}).get("notes", []):
        parts.append(f"<p><b>Data:</b> {html.escape(str(Note(**row)))}</p>")
    if "bottleneck" in results:
        parts += _bottleneck_parts(context, results["bottleneck"])
    for title, text in (
        ("Environment", json.dumps(environment(), indent=1)),
        ("Configuration", OmegaConf.to_yaml(context.cfg, resolve=True)),
    ):
        parts.append(f"<h2>{title}</h2><pre>{html.escape(text)}</pre>")
    path = context.output / "report.html"
    atomic_write(path, (PAGE + "\n".join(parts)).encode())
    return path


PAGE = """<!doctype html><meta charset="utf-8"><title>ribseg</title>
<style>body{font:14px sans-serif;margin:2em auto;max-width:70em}table{border-collapse:collapse}
td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right}td:first-child{text-align:left}</style>
"""


def _bottleneck_parts(context: Context, result: dict[str, Any]) -> list[str]:
    """The section of the toy experiment; its figure is written beside the report, too."""
    figure = bottleneck_figure(result, context.artefacts["bottleneck"].folder / EXAMPLES)
    atomic_write(context.output / "bottleneck.png", figure)
    return [
        "<h2>Information bottleneck</h2>",
        _html_image(figure),
        _html_table(gradient_header(result), gradient_rows(result)),
        f"<p>{html.escape(RATIO_NOTE)}</p>",
        _html_table(TARGET_HEADER, target_rows(result)),
        f"<p>{html.escape(network_line(result))}</p>",
    ]


def _html_image(png: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" style="max-width:100%">'


def _per_class(context: Context, columns: Columns) -> str:
    if not columns:
        return ""  # there are no masks to score with
    names = ("background", *context.data.classes)
    cells = [
        [name, *("-" if value is None else f"{100 * value:.1f}" for value in values)]
        for name, *values in zip(names, *columns.values(), strict=True)
    ]
    return _html_table(["IoU", *columns], cells)


def _html_table(header: list[str], cells: list[list[str]]) -> str:
    def line(tag: str, values: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

    return "<table>" + "".join([line("th", header), *(line("td", row) for row in cells)]) + "</table>"
