"""Maps and masks that other programs left as folders of PNGs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.data.files import scan_folder
from ribseg.data.images import read_header
from ribseg.data.maps import save_maps
from ribseg.data.masks import IGNORE, mask_ids, read_mask
from ribseg.data.voc import VOCFolder
from ribseg.errors import DataError, list_problems
from ribseg.interop.batch import convert_missing
from ribseg.interop.gray import read_gray
from ribseg.localize import STRIDE
from ribseg.types import LocalizationMaps

Found = dict[int, Path]  # class index -> PNG


def maps_from_pngs(
    folder: str | Path, ids: Sequence[str], classes: Sequence[str]
) -> Iterator[tuple[str, LocalizationMaps]]:
    """Reads localization maps from gray PNGs, one per image and class, image by image.

    The files are `<id>/<class name>.png` or `<id>_<class name>.png` below the folder; black is 0, white is 1.
    The classes of an image are those that have a file; an empty folder `<id>/` means that it has none. Maps
    at stride 4 are averages over the pixels.

    Args:
        folder: with one of the two layouts, or both.
        ids: N image ids.
        classes: C names, without background.

    Yields:
        Image id and maps, in the order of ids, with `full` and `size`.

    Raises:
        DataError: at once if files are absent, stray or ambiguous; on the way if one is broken.
    """
    found, problems = _find_all(Path(folder), ids, classes)
    absent = [image_id for image_id in ids if found[image_id] is None]
    if absent:
        problems["images without a map"] = absent
    if problems:
        raise DataError(_listed(folder, problems))
    return ((image_id, _read(found[image_id] or {})) for image_id in ids)


def masks_to_maps(mask: np.ndarray | Tensor) -> LocalizationMaps:
    """Makes maps of zeros and ones from a mask, so that it can be refined and evaluated as any maps.

    Args:
        mask: (H, W) integers, 0 background, c + 1 class c; 255 becomes background, which has no map.

    Returns:
        Maps with `full` and `size`; those at stride 4 hold shares of the pixels. Any background score between
        0 and 1 gives the mask back.

    Raises:
        ValueError: not a mask.

    >>> masks_to_maps(np.array([[0, 3]])).full
    tensor([[[0., 1.]]])
    """
    array = np.asarray(mask)
    if (
        array.ndim != 2
        or array.dtype.kind not in "iu"
        or array.size == 0
        or not 0 <= array.min() <= array.max() < 256
    ):
        raise ValueError(f"expected a mask (H, W) of integers in 0..255, got {array.dtype} {array.shape}")
    ids = [int(i) for i in mask_ids(array.astype(np.uint8)) if i not in (0, IGNORE)]
    ones = np.stack([array == i for i in ids]) if ids else np.zeros((0, *array.shape), bool)
    return _from_full(torch.tensor([i - 1 for i in ids], dtype=torch.int64), torch.from_numpy(ones).float())


def convert_png_maps(
    source_dir: str | Path, target_dir: str | Path, dataset: VOCFolder, progress: bool = False
) -> int:
    """Turns the PNGs of `maps_from_pngs` into `<image id>.npz` files for the images of a data set.

    Images without a label need no PNG. Files that are there already are not made again.

    Args:
        source_dir: folder of the PNGs.
        target_dir: gets the `.npz` files; `ribseg.data.load_maps` reads them.
        dataset: names the images, their sizes and the classes.
        progress: show a bar.

    Returns:
        How many files were written.

    Raises:
        DataError: lists what is absent, broken, or of another size than its image.
    """
    target = Path(target_dir)
    found, problems = _find_all(Path(source_dir), dataset.ids, dataset.classes)
    absent = [
        i for i, labels in zip(dataset.ids, dataset.labels, strict=True) if labels.any() and not found[i]
    ]
    if absent:
        problems["images with a label, but without a map"] = absent
    if problems:
        raise DataError(_listed(source_dir, problems))

    def convert(image_id: str) -> None:
        size = read_header(dataset.image_path(image_id)).size
        save_maps(target / f"{image_id}.npz", _read(found[image_id] or {}, size))

    return convert_missing(dataset.ids, lambda i: target / f"{i}.npz", convert, progress)


def convert_masks(
    source_dir: str | Path, target_dir: str | Path, dataset: VOCFolder, progress: bool = False
) -> int:
    """Turns masks `<image id>.png` into `<image id>.npz` files of ones and zeros; see `masks_to_maps`.

    Args:
        source_dir: folder of palette PNGs, or gray PNGs of 8 bit, with class ids.
        target_dir: gets the `.npz` files.
        dataset: names the images, their sizes and the number of classes.
        progress: show a bar.

    Returns:
        How many files were written.

    Raises:
        DataError: lists what is absent, broken, or of another size than its image.
    """
    source, target = Path(source_dir), Path(target_dir)

    def convert(image_id: str) -> None:
        path = source / f"{image_id}.png"
        mask = read_mask(path, dataset.num_classes)
        _check_size(path, mask.shape, read_header(dataset.image_path(image_id)).size)
        save_maps(target / f"{image_id}.npz", masks_to_maps(mask))

    return convert_missing(dataset.ids, lambda i: target / f"{i}.npz", convert, progress)


def _find_all(
    folder: Path, ids: Sequence[str], classes: Sequence[str]
) -> tuple[dict[str, Found | None], dict[str, list[str]]]:
    """The PNGs of each image, None where it has neither files nor a folder; and what is wrong, by kind."""
    flat = scan_folder(folder, (".png",))
    found: dict[str, Found | None] = {}
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
        own = {c: folder / flat[name] for c, name in names.items() if name in flat}
        for path in own.values():
            if owners.setdefault(path, image_id) != image_id:
                problems.setdefault("fits two images; use folders <id>/", []).append(str(path))
        found[image_id] = own or None
    return found, problems


def _listed(folder: str | Path, problems: dict[str, list[str]]) -> str:
    advice = "Expected gray images <id>/<class name>.png or <id>_<class name>.png, named as in classes.txt."
    return list_problems(f"the maps in {folder} cannot be used", problems, advice)


def _read(found: Found, size: tuple[int, int] | None = None) -> LocalizationMaps:
    """Maps of one image; `size` (H, W) of the image where it is known."""
    if not found:
        none = torch.zeros(0, *(size or (1, 1)))
        return _from_full(torch.zeros(0, dtype=torch.int64), none, known=size is not None)
    maps = []
    for path in found.values():
        maps.append(read_gray(path))
        size = size or (maps[0].shape[0], maps[0].shape[1])
        _check_size(path, maps[-1].shape, size)
    return _from_full(torch.tensor(list(found)), torch.from_numpy(np.stack(maps)))


def _from_full(classes: Tensor, full: Tensor, known: bool = True) -> LocalizationMaps:
    height, width = full.shape[1:]
    strided = (-(-height // STRIDE), -(-width // STRIDE))
    small = F.adaptive_avg_pool2d(full, strided) if len(full) else full.new_zeros(0, *strided)
    return LocalizationMaps(classes, small, full if known else None, (height, width) if known else None)


def _check_size(path: Path, found: tuple[int, ...], expected: tuple[int, int]) -> None:
    if found != expected:
        raise DataError(f"{path} has (height, width) {found}, expected {expected} as its image has.")
