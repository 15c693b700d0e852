"""Localization maps in the format of IRN, RIB and similar programs: one pickled `<image id>.npy` per image.

A file is `np.save` of a dictionary: `keys` (K,) class indices from 0 without background, `cam`
(K, ceil(H/4), ceil(W/4)), `high_res` (K, H, W), as arrays or torch tensors. Images without a class have empty
keys and nothing else. AMN's files have the background's map before those of the classes.
"""

import io
from pathlib import Path

import numpy as np
import torch

from ribseg.data.io.maps import LocalizationMaps, load_maps
from ribseg.errors import DataError
from ribseg.files import atomic_write
from ribseg.interop.batch import convert_missing, convert_to_npz, files_in
from ribseg.interop.unpickle import read_pickled_arrays
from ribseg.methods.cam import STRIDE
from ribseg.metrics.evaluation import full_size

TOLERANCE = 1e-3  # above 1, for rounding errors


def convert_irn_maps(
    source_dir: str | Path,
    target_dir: str | Path,
    num_classes: int,
    progress: bool | str = False,
    background_first: bool = False,
) -> int:
    """Converts IRN's `<image id>.npy` to `<image id>.npz`, which load without pickle; returns how many.

    Existing files are kept.

    Args:
        source_dir: folder of the `.npy` files.
        target_dir: gets the `.npz` files; `ribseg.data.load_maps` reads them.
        num_classes: C, without background.
        progress: how progress is shown, see `ribseg.progress.check_progress`.
        background_first: see `read_irn_maps`.

    Raises:
        DatasetNotFoundError: there are no such files.
        DataError: lists the files that are broken, do not match, or contain more than arrays.
    """
    source = Path(source_dir)

    def read(image_id: str) -> LocalizationMaps:
        return read_irn_maps(source / f"{image_id}.npy", num_classes, background_first)

    return convert_to_npz(files_in(source, ".npy"), read, target_dir, progress)


def write_irn_maps(source_dir: str | Path, target_dir: str | Path, progress: bool | str = False) -> int:
    """Converts `<image id>.npz` files to IRN's `<image id>.npy`; returns how many were written.

    `np.load(path, allow_pickle=True).item()` reads them: `keys` int64, `cam` and `high_res` float32, all of
    them numpy arrays. IRN's random walk calls `.cuda()` on `cam`: put `torch.from_numpy` around it there.
    Maps kept only at stride 4 are enlarged. Existing files are kept.

    Args:
        source_dir: folder of the `.npz` files, e.g. `maps/` of a stage in the store.
        target_dir: gets the `.npy` files.
        progress: how progress is shown, see `ribseg.progress.check_progress`.

    Raises:
        DatasetNotFoundError: there are no such files.
        DataError: lists the files that are broken.
    """
    source, target = Path(source_dir), Path(target_dir)

    def convert(image_id: str) -> None:
        path = source / f"{image_id}.npz"
        buffer = io.BytesIO()
        np.save(buffer, np.array(_irn_dictionary(load_maps(path), path), dtype=object))
        atomic_write(target / f"{image_id}.npy", buffer.getvalue())

    return convert_missing(files_in(source, ".npz"), lambda i: target / f"{i}.npy", convert, progress)


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
        # The image's size is not in the file.
        return LocalizationMaps(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, 1), None)
    problem = _problem(arrays, num_classes)
    if problem and not background_first and not _problem(_without_background(arrays), num_classes):
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


def _problem(arrays: dict[str | int, np.ndarray], num_classes: int) -> str:
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
    strided = tuple(-(-side // STRIDE) for side in full.shape[1:])
    if cam.shape[1:] != strided:
        return f"expected cam at stride {STRIDE} of high_res, {strided}, found {cam.shape[1:]}"
    return problem_of_scores(cam, "cam") or problem_of_scores(full, "high_res")


def problem_of_scores(array: np.ndarray, name: str) -> str:
    """The problem with the values of maps; "" if there is none."""
    # The comparison is false for NaN, too.
    if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1 + TOLERANCE:
        return ""
    return (
        f"expected {name} from 0 to 1, found {array.dtype} from {array.min()} to {array.max()}; "
        "divide each map by its maximum"
    )


def _irn_dictionary(maps: LocalizationMaps, path: Path) -> dict[str, np.ndarray]:
    keys = maps.classes.numpy().astype(np.int64)
    if len(keys) == 0:
        return {"keys": keys}
    size = maps.size if maps.full is None else (maps.full.shape[1], maps.full.shape[2])
    if size is None:
        raise DataError(f"{path} holds maps at stride 4 only, without the image's size. Compute them again.")
    full = full_size(maps, size).numpy()
    return {"keys": keys, "cam": maps.strided.numpy(), "high_res": full.astype(np.float32)}
