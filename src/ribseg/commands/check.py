"""Checks all files of a data set: counts, sizes, labels, damage, images in two splits.

Prints what it finds, and leaves no file behind.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from ribseg.errors import ConfigError, DatasetNotFoundError

OURS = "ribseg.modules.WSSSDataModule"


def add_options(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    command.add_argument("data", help="folder in VOC layout")
    command.add_argument("settings", nargs="*", help="as data.train_split=trainaug data.labels=FILE")
    command.add_argument("--out", type=Path, metavar="FILE", help="JSON file for all findings")


def run(options: argparse.Namespace) -> None:
    """Does what `run=[check_data]` does, for a folder.

    Nothing here imports torch, so that the command starts at once.
    """
    if not Path(options.data).is_dir():
        raise DatasetNotFoundError(f"{options.data}: no such folder. Expected one in VOC layout.")
    from inspect import signature

    from omegaconf import OmegaConf

    from ribseg.checks import within
    from ribseg.data.check.data_notes import data_results
    from ribseg.data.splits import DataSplits
    from ribseg.data.voc import VOCFolder
    from ribseg.pipeline.recipe.configuration import composed
    from ribseg.pipeline.recipe.console import LoggedConsole
    from ribseg.pipeline.report.check_data import report_data

    cfg = composed("config", ["experiment=rib_folder", f"data.root={options.data}", *options.settings])
    settings: Any = OmegaConf.to_container(cfg.data, resolve=True)
    if cfg.prepare or settings.get("dataset") or settings["_target_"] != OURS:
        raise ConfigError(
            "ribseg check reads folders in VOC layout. For other data: ribseg train experiment=NAME ... "
            '"run=[check_data]"'
        )
    known = {*signature(DataSplits).parameters, *signature(VOCFolder).parameters}
    with within("data"):
        data = DataSplits(**{name: value for name, value in settings.items() if name in known})
    drawn = bool(cfg.rib.references)
    facts = partial(data_results, data, trained=True, drawn=drawn, searched=cfg.rib.lr == "auto")
    report_data(data, facts, LoggedConsole(), options.out, cfg.progress)
