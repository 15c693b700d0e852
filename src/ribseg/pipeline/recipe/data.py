"""Settings of the data that count for the digest of a stage."""

from collections.abc import Mapping
from typing import Any

from ribseg.store.settings import PLACE, SPEED
from ribseg.store.sources import is_foreign

ANYWHERE = {
    "root": PLACE,
    "num_workers": "samples are functions of seed, epoch and image id",
    "pin_memory": SPEED,
}
# Settings that cannot change a result -> why. Of a class of the user's own only those of ANYWHERE.
NEUTRAL = ANYWHERE | {
    "train_split": PLACE,
    "pseudo_split": PLACE,
    "labels": PLACE,
    "classes": PLACE,
    "masks_dir": PLACE,
    "images_dir": PLACE,
    "lists_dir": PLACE,
    "held_out": PLACE,
    "on_error": "the fingerprint excludes the images that it skips",
}
# Settings that count for the stages that say so; all others that are not neutral count for every stage.
CROPS, PIXELS, VIEWS = ("crop_size", "resize_long"), ("mean", "std"), ("scales", "max_side")
CHOSEN = {*CROPS, *PIXELS, *VIEWS, "batch_size", "eval_splits"}


def counted_data(node: Mapping[str, Any], *used: str) -> dict[str, Any]:
    """The settings of the data that count for a digest.

    Args:
        node: the section, as plain values.
        used: names of those of `CHOSEN` that the stage uses; all, if the DataModule is the user's own.
    """
    foreign = is_foreign(str(node.get("_target_", "ribseg")))
    left_out = set(ANYWHERE) if foreign else {*NEUTRAL, *(CHOSEN - set(used))}
    return {name: value for name, value in node.items() if name not in left_out}
