"""`ribseg text`: a file of text embeddings of class names, for CLIP-ES."""

import argparse
from pathlib import Path

from ribseg.data.voc import VOC_CLASSES
from ribseg.errors import ConfigError
from ribseg.files import read_lines
from ribseg.models.prompts import embedded_names


def run(options: argparse.Namespace) -> None:
    """Embeds the names and writes the file."""
    target = Path(options.target)
    if target.suffix != ".npz":  # before the model is loaded
        raise ConfigError(f"expected a file that ends in .npz, got {target}")
    names = read_lines(options.names) if options.names else VOC_CLASSES
    backgrounds = read_lines(options.backgrounds) if options.backgrounds else None
    found = embedded_names(names, backgrounds, options.model, options.weights, options.template)
    found.save(target)
    print(
        f"embeddings of {len(found.names)} classes and {len(found.background_names)} backgrounds written to "
        f"{target}"
    )
