"""Embeds the names of classes, and kinds of background, by CLIP's text encoder (pip install 'ribseg[clip]').
The model must be of the same CLIP as methods.clip_es.tower; the defaults are. The published words of
CLIP-ES are taken for the classes that have some, unless the line of a class gives others.
"""  # noqa: D205 - the command's help

import argparse
from pathlib import Path

from ribseg.errors import ConfigError
from ribseg.files import read_lines


def add_options(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = command.add_argument
    add("target", metavar="FILE.npz", help="file to write")
    lines = "file with one class per line, as 'bird' or 'bird: bird avian'; default: VOC's twenty"
    add("--names", type=Path, metavar="FILE", help=lines)
    kinds = "file with one kind of background per line; default: CLIP-ES's that are no classes"
    add("--backgrounds", type=Path, metavar="FILE", help=kinds)
    add("--model", default="ViT-B-16-quickgelu", help="of open_clip; default: %(default)s")
    add("--weights", default="openai", help="a tag of open_clip, or a file; default: %(default)s")
    default = "a clean origami {}."
    add("--template", default=default, help="with {} in the place of the words; default: %(default)s")


def run(options: argparse.Namespace) -> None:
    """Embeds the names and writes the file."""
    from ribseg.data.voc import VOC_CLASSES
    from ribseg.models.text import embedded_names

    target = Path(options.target)
    if target.suffix != ".npz":  # before the model is loaded
        raise ConfigError(f"expected a file that ends in .npz, got {target}")
    names = read_lines(options.names) if options.names else VOC_CLASSES
    backgrounds = read_lines(options.backgrounds) if options.backgrounds else None
    found = embedded_names(names, backgrounds, options.model, options.weights, options.template)
    found.save(target)
    print(f"{len(found.names)} classes and {len(found.background_names)} backgrounds written to {target}")
