"""Localization maps as other programs pickle them: one `<image id>.npy` per image, `np.save` of a dictionary.

IRN, RIB and similar programs: `keys` (K,) class indices from 0 without background, `cam`
(K, ceil(H/4), ceil(W/4)), `high_res` (K, H, W), as arrays or torch tensors. Images without a class have empty
keys and nothing else. AMN's files have the background's map before those of the classes.

PSA, ACR and S2C: class index from 0 without background -> map (H, W). Images without a class have an empty
dictionary.
"""

from pathlib import Path

import numpy as np
import torch

from ribseg.data.io.maps import LocalizationMaps, load_maps
from ribseg.errors import DataError
from ribseg.files import atomic_file
from ribseg.functional.cam import strided_size
from ribseg.interop.folders import maps_of_full, no_maps
from ribseg.interop.unpickle import read_pickled_arrays
from ribseg.metrics.evaluation import full_size
from ribseg.types import STRIDE

TOLERANCE = 1e-3  # above 1, for rounding errors


def read_irn_maps(path: str | Path, num_classes: int, background_first: bool = False) -> LocalizationMaps:
    """The maps in one of IRN's files; `ribseg.interop.unpickle` reads it safely.

    Args:
        path: of the file.
        num_classes: C, without background.
        background_first: the first map is that of the background, as in AMN's files; it is ignored, as AMN
            does.

    Raises:
        DataError: if it is broken, not in IRN's format, or does not match the number of classes.
    """
    arrays = read_pickled_arrays(path)
    if background_first:
        arrays = _without_background(arrays)
    keys = arrays.get("keys", np.zeros(0))
    if "keys" in arrays and keys.size == 0:
        return no_maps()
    problem = _irn_problem(arrays, num_classes)
    if problem and not background_first and not _irn_problem(_without_background(arrays), num_classes):
        problem += "; with the background's map before those of the classes it is AMN's layout, amn"
    if problem:
        raise DataError(f"{path} holds no maps of {num_classes} classes: {problem}.")
    order = np.argsort(keys)
    classes = torch.from_numpy(keys[order].astype(np.int64))
    strided, full = (
        torch.from_numpy(arrays[name][order].astype(np.float32)).clamp(max=1) for name in ("cam", "high_res")
    )
    return LocalizationMaps(classes, strided, full, (full.shape[1], full.shape[2]))


def _without_background(arrays: dict[str | int, np.ndarray]) -> dict[str | int, np.ndarray]:
    """The arrays without the first map."""
    maps = {name: arrays[name] for name in ("cam", "high_res") if name in arrays}
    return arrays | {name: array[1:] for name, array in maps.items() if array.ndim == 3}


def _irn_problem(arrays: dict[str | int, np.ndarray], num_classes: int) -> str:
    """The problem with a dictionary of maps; "" if there is none."""
    if not {"keys", "cam", "high_res"} <= set(arrays):
        hint = "; a map for each class index is PSA's layout, psa" if set(map(type, arrays)) == {int} else ""
        return f"expected keys, cam and high_res, found {sorted(arrays, key=str)[:8]}{hint}"
    keys, cam, full = arrays["keys"], arrays["cam"], arrays["high_res"]
    if keys.ndim != 1 or keys.dtype.kind not in "iu" or len(np.unique(keys)) < len(keys):
        return f"expected different integers as keys, found {keys.tolist()[:8]}"
    if keys.min() < 0 or keys.max() >= num_classes:
        return f"expected keys in 0..{num_classes - 1} (the first class is 0), found {keys.tolist()[:8]}"
    if cam.ndim != 3 or full.ndim != 3 or 0 in full.shape or not len(cam) == len(full) == len(keys):
        return f"expected {len(keys)} maps each, found cam {cam.shape} and high_res {full.shape}"
    strided = strided_size(full.shape[1:])
    if cam.shape[1:] != strided:
        return f"expected cam at stride {STRIDE} of high_res, {strided}, found {cam.shape[1:]}"
    return _problem_of_scores(cam, "cam") or _problem_of_scores(full, "high_res")


def _problem_of_scores(array: np.ndarray, name: str) -> str:
    """The problem with the values of maps; "" if there is none."""
    # The comparison is false for NaN, too.
    if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1 + TOLERANCE:
        return ""
    return (
        f"expected {name} from 0 to 1, found {array.dtype} from {array.min()} to {array.max()}; "
        "divide each map by its maximum"
    )


def read_psa_maps(path: str | Path, num_classes: int) -> LocalizationMaps:
    """The maps in one of PSA's files; `ribseg.interop.unpickle` reads it safely.

    Maps at stride 4 are averages over the pixels.

    Raises:
        DataError: if it is broken, not in PSA's format, or does not match the number of classes.
    """
    arrays = read_pickled_arrays(path)
    if not arrays:
        return no_maps()
    problem = _psa_problem(arrays, num_classes)
    if problem:
        raise DataError(f"{path} holds no maps of {num_classes} classes: {problem}.")
    classes = sorted(int(c) for c in arrays)
    full = np.stack([arrays[c] for c in classes]).astype(np.float32)
    return maps_of_full(torch.tensor(classes), torch.from_numpy(full).clamp(max=1))


def _psa_problem(arrays: dict[str | int, np.ndarray], num_classes: int) -> str:
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
    return _problem_of_scores(np.stack(list(arrays.values())), "maps")


def irn_dictionary(path: str | Path) -> dict[str, np.ndarray]:
    """IRN's dictionary for a `<image id>.npz`: `keys` int64, `cam` and `high_res` float32.

    Maps kept only at stride 4 are enlarged.

    Raises:
        DataError: the file is broken, or the image's size is not in it.
    """
    maps = load_maps(path)
    keys = maps.classes.numpy().astype(np.int64)
    if len(keys) == 0:
        return {"keys": keys}
    size = maps.size if maps.full is None else (maps.full.shape[1], maps.full.shape[2])
    if size is None:
        raise DataError(f"{path} holds maps at stride 4 only, without the image's size. Compute them again.")
    full = full_size(maps, size).numpy()
    return {"keys": keys, "cam": maps.strided.numpy(), "high_res": full.astype(np.float32)}


def save_dictionary(path: str | Path, content: dict[str, np.ndarray]) -> None:
    """Writes a dictionary of arrays as IRN does, pickled in a `.npy` file, atomically."""
    with atomic_file(path) as file:
        np.save(file, np.array(content, dtype=object))
