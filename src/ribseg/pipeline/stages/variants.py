"""The variants of pseudo masks: names, steps and settings."""

from itertools import product
from pathlib import Path
from typing import NamedTuple

from ribseg.errors import ConfigError
from ribseg.pipeline.recipe.methods import ATTENTION, WALK

PARTS = ((WALK, ATTENTION), ("saliency", "scenes"), ("crf", "pixel_adaptive"), ("segments",))
# What refines the maps before they are cut -> setting of `refine` with their background score.
THRESHOLDS = {"": "maps_threshold", WALK: "walk_threshold", ATTENTION: "attention_threshold"}
# Name -> its steps, each a part or "" for none.
VARIANTS = {
    "_".join(filter(None, parts)) or "none": parts for parts in product(*(("", *names) for names in PARTS))
}


class Variant(NamedTuple):
    """The steps from maps to masks.

    Attributes:
        refined: "random_walk" or "attention", the stage that refines the maps first, or "" for none.
        saliency: "saliency" if saliency maps define the background, not a background score; "scenes" if they
            do so for the classes that they speak about; or "".
        refinement: "crf", "pixel_adaptive", or "" for none.
        segments: class-agnostic segments vote on the labels, last of all.
    """

    refined: str
    saliency: str
    refinement: str
    segments: bool

    @classmethod
    def parse(cls, name: str) -> "Variant":
        """The variant of a name: steps in this order, joined by "_"; "none" for no step.

        Raises:
            ConfigError: unknown name.
        """
        if name not in VARIANTS:
            raise ConfigError(f"expected refine.variants out of {', '.join(VARIANTS)}; got {name!r}")
        refined, saliency, refinement, segments = VARIANTS[name]
        return cls(refined, saliency, refinement, bool(segments))


def mask_path(folder: Path, variant: str, image_id: str) -> Path:
    """The file of an image's pseudo mask."""
    return folder / variant / f"{image_id}.png"
