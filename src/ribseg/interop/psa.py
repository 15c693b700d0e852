"""Localization maps in the format of PSA, ACR and S2C: one pickled `<image id>.npy` per image.

A file is `np.save` of a dictionary: class index from 0 without background -> map (H, W). Images without a
class have an empty one.
"""

from pathlib import Path

import numpy as np
import torch

from ribseg.data.io.maps import LocalizationMaps
from ribseg.errors import DataError
from ribseg.interop.folders import maps_of_full, no_maps
from ribseg.interop.irn import problem_of_scores
from ribseg.interop.unpickle import read_pickled_arrays


def read_psa_maps(path: str | Path, num_classes: int) -> LocalizationMaps:
    """The maps in one of PSA's files; `ribseg.interop.unpickle` reads it safely.

    Maps at stride 4 are averages over the pixels.

    Raises:
        DataError: if it is broken, not in PSA's format, or does not match the number of classes.
    """
    arrays = read_pickled_arrays(path)
    if not arrays:
        return no_maps()
    problem = _problem(arrays, num_classes)
    if problem:
        raise DataError(f"{path} holds no maps of {num_classes} classes: {problem}.")
    classes = sorted(int(c) for c in arrays)
    full = np.stack([arrays[c] for c in classes]).astype(np.float32)
    return maps_of_full(torch.tensor(classes), torch.from_numpy(full).clamp(max=1))


def _problem(arrays: dict[str | int, np.ndarray], num_classes: int) -> str:
    """The problem with a dictionary of maps; "" if there is none."""
    classes = [name for name in arrays if isinstance(name, int)]
    if len(classes) < len(arrays):
        hint = "; keys, cam and high_res are IRN's layout, irn" if "high_res" in arrays else ""
        return f"expected class indices, found {sorted(arrays, key=str)[:8]}{hint}"
    if not 0 <= min(classes) <= max(classes) < num_classes:
        return f"expected indices in 0..{num_classes - 1} (the first class is 0), found {sorted(classes)[:8]}"
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or len(min(shapes)) != 2 or 0 in min(shapes):
        return f"expected maps (height, width) of one size, found {sorted(shapes)}"
    return problem_of_scores(np.stack(list(arrays.values())), "maps")
