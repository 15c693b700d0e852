"""Files of localization maps: one `<image id>.npz` per image."""

import io
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ribseg.data.files import atomic_write
from ribseg.errors import DataError
from ribseg.types import LocalizationMaps

# numpy reads the headers of arrays by Python's syntax trees, which some releases (seen in 3.11.7) count wrong
# when several threads build them at once: "AST constructor recursion depth mismatch".
HEADERS = threading.Lock()


def save_maps(path: str | Path, maps: LocalizationMaps) -> None:
    """Writes localization maps atomically; the same maps give the same bytes.

    The archive holds `classes` (K,) int64, `strided` (K, h, w) float16 and, where given, `full` (K, H, W)
    float16 and `size` (2,) int64. Half precision keeps three digits; a sweep in steps of .01 sees two.

    Raises:
        DataError: if shapes contradict each other or a value is not finite in half precision.
        RibsegError: if the folder cannot be written to.
    """
    arrays = {"classes": _numpy(maps.classes, np.int64), "strided": _numpy(maps.strided, np.float16)}
    if maps.full is not None:
        arrays["full"] = _numpy(maps.full, np.float16)
    if maps.size is not None:
        arrays["size"] = np.asarray(maps.size, dtype=np.int64)
    problem = _problem(arrays)
    if problem:
        raise DataError(f"localization maps for {path} are not written: {problem}.")
    buffer = io.BytesIO()
    # numpy stamps every member with 1980-01-01, so the bytes depend on the values alone.
    np.savez(buffer, allow_pickle=False, **arrays)
    atomic_write(path, buffer.getvalue())


def load_maps(path: str | Path) -> LocalizationMaps:
    """Reads what `save_maps` wrote; the maps come back as float32 on the CPU.

    Raises:
        DataError: if the file is absent, broken, or holds something else.
    """
    try:
        with HEADERS, np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise DataError(
            f"the localization maps {path} are absent. Run the stage that makes them again."
        ) from error
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(
            f"{path} cannot be read: {error}. Delete it and run the stage that makes it again."
        ) from error
    problem = _problem(arrays)
    if problem:
        raise DataError(f"{path} holds no localization maps: {problem}. Delete it and run its stage again.")
    size = tuple(arrays["size"].tolist()) if "size" in arrays else None
    full = torch.from_numpy(arrays["full"]).float() if "full" in arrays else None
    classes = torch.from_numpy(arrays["classes"]).long()
    return LocalizationMaps(classes, torch.from_numpy(arrays["strided"]).float(), full, size)


def _numpy(tensor: Tensor, dtype: type) -> np.ndarray:
    with np.errstate(over="ignore"):  # _problem names the infinity that an overflow leaves
        return tensor.detach().cpu().numpy().astype(dtype)


def _problem(arrays: dict[str, np.ndarray]) -> str:
    """What is wrong with the arrays of a map file; empty if nothing is."""
    if not {"classes", "strided"} <= set(arrays):
        return f"expected `classes` and `strided`, found {sorted(arrays)}"
    if arrays["classes"].ndim != 1 or arrays["classes"].dtype.kind != "i":
        return (
            f"expected `classes` (K,) of integers, found {arrays['classes'].dtype} {arrays['classes'].shape}"
        )
    for name in {"strided", "full"} & set(arrays):
        array, count = arrays[name], len(arrays["classes"])
        if array.ndim != 3 or len(array) != count or array.dtype.kind != "f":
            return f"expected `{name}` ({count}, height, width) of floats, found {array.dtype} {array.shape}"
        if not np.isfinite(array).all():
            return f"`{name}` holds NaN or infinity"
    if "size" in arrays and (arrays["size"].shape != (2,) or arrays["size"].dtype.kind != "i"):
        return f"expected `size` (2,) of integers, found {arrays['size'].dtype} {arrays['size'].shape}"
    return ""
