"""`ribseg check`: a report on a data set, with its oddities and errors."""

import argparse

from ribseg.launch import train


def run(options: argparse.Namespace) -> None:
    """Checks all files of a folder in VOC layout, as `run=[check_data]` does."""
    settings = ["experiment=rib_folder", f"data.root={options.data}", "run=[check_data]", *options.settings]
    train(settings, ["train"])
