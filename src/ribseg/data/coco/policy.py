"""Policies for converting COCO's instances to semantic masks and image-level labels.

COCO publishes instances, not semantic masks, and public code differs in the conversion: whether crowd regions
count, which of two overlapping objects is visible, and whether images without any object are listed. So these
are settings, and recorded with every result. `PRESETS` are named after public code:

- rib: jbeomlee93/RIB lists all images (82,783 and 40,504) and gives those without a label empty masks. Its
  masks came as a download whose making is not published: crowd and overlap are our choice here, no fact.
- recam: zhaozhengChen/ReCAM; mscoco/annToMask.py makes masks of all images, later annotations over earlier
  ones, without crowds; mscoco/dataloader.py counts the categories of crowds among the labels.
- coco2voc: alicranck/coco2voc, which rulixiang/ToCo and others name for their masks; smaller objects on top
  (by the file's `area`; here by the pixels drawn), crowds as objects, no images without annotations: ToCo
  lists 82,081 and 40,137.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ribseg.checks import check_choice

Crowd = Literal["exclude", "include", "ignore255", "label_only"]
Overlap = Literal["last", "smallest_on_top"]
Unannotated = Literal["keep", "drop"]


@dataclass(frozen=True)
class Policy:
    """A policy for converting instances to semantic masks and image-level labels.

    Attributes:
        crowd: crowd regions are left out of masks and labels ("exclude"), treated as other objects
            ("include"), drawn as 255 with their class as a label ("ignore255"), or not drawn but with their
            class as a label ("label_only").
        overlap: of overlapping objects the last one in the file is visible ("last"), or the one with the
            smallest area ("smallest_on_top").
        unannotated: images without any instance that counts are listed, without a label ("keep"), or not
            ("drop").

    Raises:
        ConfigError: an unknown value.
    """

    crowd: Crowd = "include"
    overlap: Overlap = "last"
    unannotated: Unannotated = "keep"

    def __post_init__(self) -> None:
        for name, kind in (("crowd", Crowd), ("overlap", Overlap), ("unannotated", Unannotated)):
            check_choice(name, getattr(self, name), get_args(kind))

    @property
    def folder(self) -> str:
        """A name for the folder of the masks."""
        return "-".join(f"{name}-{value}" for name, value in asdict(self).items())


PRESETS = {
    "rib": Policy("include", "last", "keep"),
    "recam": Policy("label_only", "last", "keep"),
    "coco2voc": Policy("include", "smallest_on_top", "drop"),
}


def chosen_policy(preset: str, **settings: str | None) -> tuple[Policy, str]:
    """A preset with changed settings, and its name in results.

    Args:
        preset: a name in `PRESETS`.
        settings: attributes of `Policy`; None for the preset's.

    Raises:
        ConfigError: unknown preset or value.

    >>> chosen_policy("recam", crowd="exclude", overlap=None)[1], chosen_policy("recam", overlap="last")[1]
    ('recam with crowd=exclude', 'recam')
    """
    check_choice("policy", preset, list(PRESETS))
    values: dict[str, Any] = asdict(PRESETS[preset])
    changed = {name: value for name, value in settings.items() if value not in (None, values[name])}
    named = ", ".join(f"{name}={value}" for name, value in changed.items())
    return Policy(**values | changed), f"{preset} with {named}" if named else preset
