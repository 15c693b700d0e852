"""Several runs, or the jobs of a sweep, beside each other: comparison.html with the settings that differ,
paired intervals of the differences, and the same images under each; comparison.json has the numbers.
One run: its report.html again, from results.json and the store.
"""  # noqa: D205 - the command's help

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ribseg.checks import check_number
from ribseg.errors import ConfigError

if TYPE_CHECKING:
    from ribseg.pipeline.report.finished import FinishedRun


def add_options(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = command.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of a sweep")
    add("--out", type=Path, help="folder; default: comparison, or the folder of the sweep")
    names = "names of the runs; default: the overrides that differ"
    add("--names", type=lambda text: [part.strip() for part in text.split(",")], metavar="A,B", help=names)
    resamples = "bootstrap samples of the images; default: 10000"
    add("--resamples", type=int, default=10000, help=resamples)


def run(options: argparse.Namespace) -> None:
    """Writes `report.html` into the folder of one run, or `comparison.html` of several into `--out`."""
    from ribseg.pipeline.report.finished import open_runs

    check_number("--resamples", options.resamples, low=1)
    folders = [path.absolute() for path in options.runs]
    runs = open_runs(folders, options.names)
    out = (options.out or (folders[0] if len(folders) == 1 else Path("comparison"))).absolute()
    if len(runs) == 1 and (options.out or options.names):
        raise ConfigError("--out and --names are for several runs; one has its report in its folder")
    with runs[0].inside():
        path = _one(runs[0]) if len(runs) == 1 else _several(runs, out, options.resamples)
    print(f"report: {path}")


def _one(run: "FinishedRun") -> Path:
    from ribseg.pipeline.plan import reopened
    from ribseg.pipeline.report.page import write_report

    return write_report(reopened(run, run.folder), run.results)


def _several(runs: Sequence["FinishedRun"], out: Path, resamples: int) -> Path:
    from ribseg.pipeline.plan import reopened
    from ribseg.pipeline.recipe.console import LoggedConsole
    from ribseg.pipeline.report.compare import sentences
    from ribseg.pipeline.report.compare_page import comparison_tables, write_comparison

    path, comparison = write_comparison(reopened(runs[0], out), runs, resamples)
    console = LoggedConsole()
    console.print(*(table.for_terminal() for table in comparison_tables(comparison)))
    for text in sentences(comparison):
        console.say(text)
    return path
