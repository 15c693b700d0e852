"""Checks all files of a data set: counts, sizes, labels, damage, images in two splits."""

import argparse


def add_options(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    command.add_argument("data", help="folder in VOC layout")
    command.add_argument("settings", nargs="*", help="as data.train_split=trainaug data.labels=FILE")


def run(options: argparse.Namespace) -> None:
    """Does what `run=[check_data]` does, for a folder."""
    from ribseg.launch import train

    settings = ["experiment=rib_folder", f"data.root={options.data}", "run=[check_data]", *options.settings]
    train(settings, ["train"])
