"""`ribseg check`: what is in a data set, what is odd and what is wrong."""

import argparse

from ribseg.launch import train


def run(options: argparse.Namespace) -> None:
    """Looks at all files of a folder in VOC layout, as `run=[check_data]` does."""
    settings = ["experiment=rib_folder", f"data.root={options.data}", "run=[check_data]", *options.settings]
    train(settings, ["train"])
