"""The variants of pseudo masks: names, steps and settings."""

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from ribseg.errors import ConfigError
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.stages.chains import ATTENTION, WALK, Chain
from ribseg.pipeline.stages.thresholds import THRESHOLDS
from ribseg.store.digest import plain

UNARIES = ("labels", "maps")  # what a CRF starts from
PARTS = ((WALK, ATTENTION), ("saliency",), ("crf", "pixel_adaptive"), ("segments",))


class Variant(NamedTuple):
    """The steps from maps to masks.

    Attributes:
        refined: "random_walk" or "attention", the stage that refines the maps first, or "" for none.
        saliency: saliency maps define the background, not a background score.
        refinement: "crf", "pixel_adaptive", or "" for none.
        segments: class-agnostic segments vote on the labels, last of all.
    """

    refined: str
    saliency: bool
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
        refinement = next((part for part in PARTS[2] if part in name), "")
        refined = next((part for part in PARTS[0] if name.startswith(part)), "")
        return cls(refined, "saliency" in name, refinement, "segments" in name)


VARIANTS = tuple(
    "_".join(filter(None, parts)) or "none" for parts in product(*(("", *names) for names in PARTS))
)


class Recipe(NamedTuple):
    """The settings for making a mask.

    Attributes:
        threshold: background score; with saliency, the threshold above which a pixel is salient.
        saliency: whether images with a label have a saliency map; others are all background.
        crf: settings of `dense_crf`, or None.
        on_maps: whether the CRF starts from the maps instead of labels.
        pixel_adaptive: settings of `pixel_adaptive`, or None.
        segments: the settings `refine.segments`, or None.
    """

    threshold: float
    saliency: bool
    crf: dict[str, Any] | None
    on_maps: bool
    pixel_adaptive: dict[str, Any] | None
    segments: dict[str, Any] | None


def recipe(context: Context, variant: Variant, threshold: float) -> Recipe:
    """The settings of a variant."""
    cfg = context.cfg.refine
    settings = {name: plain(cfg[name]) if variant.refinement == name else None for name in PARTS[2]}
    segments = plain(cfg.segments) if variant.segments else None
    on_maps = cfg.crf_unary == "maps"
    return Recipe(threshold, variant.saliency, on_maps=on_maps, segments=segments, **settings)


def check_variants(cfg: DictConfig) -> None:
    """Raises a ConfigError if `refine.variants` is empty or names an unknown variant."""
    if not cfg.refine.variants:
        raise ConfigError(f"expected refine.variants=[...] with some of {', '.join(VARIANTS)}, got none")
    for name in cfg.refine.variants:
        Variant.parse(name)


def map_source(chain: Chain, variant: str) -> str:
    """The stage whose maps a variant starts from."""
    refined = Variant.parse(variant).refined
    return chain.name(refined) if refined else chain.maps


def threshold_setting(variant: Variant) -> str:
    """The setting of `refine` with the background score of a variant."""
    return THRESHOLDS[variant.refined]


def mask_path(folder: Path, variant: str, image_id: str) -> Path:
    """The file of an image's pseudo mask."""
    return folder / variant / f"{image_id}.png"
