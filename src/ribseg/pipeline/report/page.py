"""The report of a run: `report.html`, one self-contained page."""

import base64
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf

from ribseg.data.check.data_notes import source_lines
from ribseg.data.check.note import Note
from ribseg.files import atomic_write
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.report.answer import BASELINE, answers, network_line, result_lines
from ribseg.pipeline.report.figures import Drawing, bottleneck_figures, figure, map_figures, segmenter_figures
from ribseg.pipeline.report.finished import OVERRIDES, overrides_of
from ribseg.pipeline.report.gallery import Gallery, make_gallery
from ribseg.pipeline.report.pictures import MapSeries, MaskSeries, map_series_of, mask_series_of, picture_grid
from ribseg.pipeline.report.records import Record
from ribseg.pipeline.report.table import Sortable, TableData
from ribseg.pipeline.report.tables import DETAILS, SECTIONS, TABLES, own_tables, run_records, shown_tables
from ribseg.plot import adaptation_figure
from ribseg.plot.style import MAPS as MAP_COLOURS
from ribseg.progress import duration
from ribseg.store.artefact import Artefact

OPENING = 4  # images above the tables


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


def write_report(session: Session, results: dict[str, Any]) -> Path:
    """Writes `report.html` and its figures into the run's folder; returns the path."""
    maps, masks = map_series_of(session, results), list(mask_series_of(results))
    grid = picture_grid(session, maps, masks, session.cfg.report.examples)
    if grid:
        atomic_write(session.output / "grid.png", grid)
    opening = picture_grid(session, maps, masks, OPENING)
    after = (adaptation_section, data_section, run_section)
    path, records = session.output / "report.html", run_records(session, results)
    page = render(
        title=f"ribseg: {session.cfg.name}",
        facts=facts(session, results),
        answers=answers(records),
        opening=base64.b64encode(opening).decode() if opening else "",
        before=list(score_sections(session, results, records)),
        gallery=gallery(session, maps, masks),
        after=[section for part in after for section in part(session, results)],
    )
    atomic_write(path, page.encode())
    return path


def render(**values: Any) -> str:
    """A page from the template `report.html`; everything that is filled in is escaped."""
    templates = Environment(
        loader=PackageLoader("ribseg.pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("report.html").render(**values, colour_map=colour_map())


def colour_map() -> list[list[int]]:
    """The 256 RGB colours of localization maps, for the page's script."""
    from matplotlib import colormaps

    return [[round(255 * part) for part in colormaps[MAP_COLOURS](value)[:3]] for value in range(256)]


def facts(session: Session, results: Mapping[str, Any]) -> dict[str, str]:
    """What ran, with which data: name -> text, for the head of the page."""
    found = {"stages": ", ".join(session.run.chosen), "seed": str(results["seed"])}
    made = results["environment"]
    found["ribseg"] = " ".join(made[key] for key in ("ribseg", "commit") if key in made)
    if "data" in results or "localization" in results:
        data = session.data
        sizes = {data.train.split: len(data.train)} | {name: len(each) for name, each in data.evals.items()}
        splits = ", ".join(f"{name} {number:,}" for name, number in sizes.items())
        found = {"data": f"{data.train.origin}: {splits} images, {data.train.num_classes} classes"} | found
    return found


def gallery(session: Session, maps: Sequence[MapSeries], masks: Sequence[MaskSeries]) -> Gallery | None:
    """The gallery of a run's maps and masks; None without maps, or with report.images=0."""
    if not maps:
        return None
    folders = list(session.data.evals.values()) or [session.data.train]
    baseline = BASELINE if any(series.name == BASELINE for series in maps) else None
    return make_gallery(session, folders, maps, masks, baseline)


def score_sections(
    session: Session, results: Mapping[str, Any], records: Sequence[Record]
) -> Iterator[Section]:
    """The sections with tables and figures of scores."""
    drawn = {"localization": map_figures, "segmenter": segmenter_figures, "bottleneck": bottleneck_figures}
    own = own_tables(session)
    for title, parts in SECTIONS.items():
        found = [one for one in records if one.part in parts]
        if any(one.part == parts[0] for one in found):
            lines = [network_line(results["bottleneck"])] if "bottleneck" in parts else []
            figures = drawn[parts[0]](session, found) if parts[0] in drawn else []
            tables = shown_tables(found, (*TABLES, *own.values()))
            yield Section(title, tables, lines, figures, shown_tables(found, DETAILS))


def adaptation_section(session: Session, results: dict[str, Any]) -> Iterator[Section]:
    """The section on steps, stop rules, logits and areas of the methods that adapt the classifier."""
    found = {one["label"]: one for one in results.get("methods", {}).values() if one["logits"]}
    lines = result_lines(results)
    title = "Mean logit and area of the maps over the steps k"
    figures = [figure(session, "adaptation", adaptation_figure(found), title)] if found else []
    if figures or lines:
        yield Section("Adaptation", lines=lines, figures=figures)


def data_section(session: Session, results: dict[str, Any]) -> Iterator[Section]:
    """The section with the sources of labels and masks, and notes on unusual data."""
    facts = results.get("data", {})
    lines = [f"{what.capitalize()}: {text}." for what, text in source_lines(facts)]
    lines += [str(Note(**row)) for row in facts.get("notes", [])]
    if lines:
        yield Section("Notes on the data", lines=lines)


def run_section(session: Session, results: dict[str, Any]) -> Iterator[Section]:
    """The section with time per stage, command, environment and settings."""
    repeat = command(session.output)
    listings = {"Command": repeat} if repeat else {}
    listings["Environment"] = json.dumps(results["environment"], indent=1)
    listings["Configuration"] = OmegaConf.to_yaml(session.cfg, resolve=True)
    finished = {name: a for name, a in session.artefacts.items() if name in results["store"]}
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
        seconds = Sortable(time_taken(manifest["seconds"]), manifest["seconds"])
        rows.append([name, seconds, moment, artefact.folder.name])
    columns = ["stage", "time", "finished (UTC)", "in the store"]
    return TableData("Time per stage", columns, rows, f"Sum: {time_taken(total)}.", text=columns[2:])


def time_taken(seconds: float) -> str:
    """A duration as text.

    >>> time_taken(3.24), time_taken(75), time_taken(7322)
    ('3.2 s', '1:15', '2:02:02')
    """
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
