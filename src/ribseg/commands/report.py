"""`ribseg report`: the report of a finished run again, or the comparison of several."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ribseg.errors import ConfigError
from ribseg.pipeline.plan import planned
from ribseg.pipeline.recipe.console import LoggedConsole
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.report.compare import sentences
from ribseg.pipeline.report.compare_page import comparison_tables, write_comparison
from ribseg.pipeline.report.finished import FinishedRun, open_runs
from ribseg.pipeline.report.page import write_report


def run(options: argparse.Namespace) -> None:
    """Writes `report.html` into the folder of one run, or `comparison.html` of several into `--out`."""
    runs = open_runs(options.runs, options.names)
    if len(runs) > 1:
        context = opened(runs[0], options.out or _folder(options.runs))
        path, comparison = write_comparison(context, runs, options.resamples)
        console = LoggedConsole()
        console.print(*(table.for_terminal() for table in comparison_tables(comparison)))
        for text in sentences(comparison):
            console.say(text)
    elif options.out or options.names:
        raise ConfigError("--out and --names are for several runs; one has its report in its folder")
    else:
        path = write_report(opened(runs[0], runs[0].folder), runs[0].results)
    print(f"report: {path}")


def opened(run: FinishedRun, output: Path) -> Context:
    """A context with the settings, data and artefacts of a run, whose files are written to `output`."""
    context = Context(planned(run.cfg)[0], output, run.artefacts)
    if "skipped" in run.results:
        context.skip(run.results["skipped"])
    return context


def _folder(given: Sequence[Path]) -> Path:
    """Where the comparison is written: into the folder of a sweep, else into ./comparison."""
    return given[0] if len(given) == 1 else Path("comparison")
