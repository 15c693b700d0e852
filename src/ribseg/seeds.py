"""Random generators that depend only on their arguments."""

import hashlib
import json

import numpy as np


def rng(seed: int, *key: str | int) -> np.random.Generator:
    """A random generator that depends only on the arguments, not on process, platform or hash seed.

    >>> int(rng(0, "2007_000032", 3).integers(1000)) == int(rng(0, "2007_000032", 3).integers(1000))
    True
    """
    text = json.dumps([int(seed), *(part if isinstance(part, str) else int(part) for part in key)])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))
