"""Maps and masks of other programs as folders of PNGs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.data.io.maps import LocalizationMaps
from ribseg.data.io.masks import IGNORE, mask_ids
from ribseg.errors import DataError
from ribseg.files import scan_folder
from ribseg.functional.cam import strided_size
from ribseg.interop.saliency import read_gray

Found = dict[int, Path]  # class index -> PNG


def masks_to_maps(mask: np.ndarray | Tensor) -> LocalizationMaps:
    """Maps of zeros and ones from a mask, so that it can be refined and evaluated like maps.

    Args:
        mask: (H, W) integers, 0 background, c + 1 class c; 255 becomes background, which has no map.

    Returns:
        Maps with `full` and `size`; maps at stride 4 are shares of the pixels. Any background score between
        0 and 1 reproduces the mask.

    Raises:
        ValueError: not a mask.

    >>> masks_to_maps(np.array([[0, 3]])).full
    tensor([[[0., 1.]]])
    """
    array = np.asarray(mask)
    is_mask = array.ndim == 2 and array.dtype.kind in "iu" and array.size > 0
    if not is_mask or array.min() < 0 or array.max() > 255:
        raise ValueError(f"expected a mask (H, W) of integers in 0..255, got {array.dtype} {array.shape}")
    ids = [int(i) for i in mask_ids(array.astype(np.uint8)) if i not in (0, IGNORE)]
    ones = np.stack([array == i for i in ids]) if ids else np.zeros((0, *array.shape), bool)
    return maps_of_full(torch.tensor([i - 1 for i in ids], dtype=torch.int64), torch.from_numpy(ones).float())


def find_pngs(
    folder: Path, ids: Sequence[str], classes: Sequence[str]
) -> tuple[dict[str, Found], dict[str, list[str]]]:
    """Image id -> its gray PNGs, one per class; and kind -> files that are unexpected or ambiguous.

    The files are `<id>/<class name>.png` or `<id>_<class name>.png` below the folder, in either layout, or
    both. The classes of an image are those that have a file.
    """
    flat = scan_folder(folder, (".png",))
    found: dict[str, Found] = {}
    owners: dict[Path, str] = {}
    problems: dict[str, list[str]] = {}
    for image_id in ids:
        inside = folder / image_id
        if inside.is_dir():
            files = scan_folder(inside, (".png",))
            stray = [str(inside / name) for stem, name in files.items() if stem not in classes]
            if stray:
                problems.setdefault("not the name of a class", []).extend(stray)
            found[image_id] = {c: inside / files[name] for c, name in enumerate(classes) if name in files}
            continue
        names = {c: f"{image_id}_{name}" for c, name in enumerate(classes)}
        found[image_id] = {c: folder / flat[name] for c, name in names.items() if name in flat}
        for path in found[image_id].values():
            if owners.setdefault(path, image_id) != image_id:
                problems.setdefault("fits two images; use folders <id>/", []).append(str(path))
    return found, problems


def read_pngs(found: Found) -> LocalizationMaps:
    """The maps of one image from its PNGs; black is 0, white is 1, and maps at stride 4 are averages.

    Raises:
        DataError: if a file is broken, or sizes differ.
    """
    maps: list[np.ndarray] = []
    for path in found.values():
        maps.append(read_gray(path))
        if maps[-1].shape != maps[0].shape:
            raise DataError(f"{path} is of {maps[-1].shape}, expected {maps[0].shape} as its other maps are")
    return maps_of_full(torch.tensor(list(found)), torch.from_numpy(np.stack(maps)))


def maps_of_full(classes: Tensor, full: Tensor) -> LocalizationMaps:
    """Maps with averages at stride 4 from full-size maps (K, H, W)."""
    strided = strided_size(full.shape[1:])
    small = F.adaptive_avg_pool2d(full, strided) if len(full) else full.new_zeros(0, *strided)
    return LocalizationMaps(classes, small, full, (full.shape[1], full.shape[2]))


def no_maps() -> LocalizationMaps:
    """The maps of an image without a class, whose size is in no file."""
    return LocalizationMaps(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, 1), None)
