"""Reading maps and masks of other programs for the images of a data set."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch

from ribseg.data.base import BaseDataset
from ribseg.data.io.maps import LocalizationMaps, load_maps
from ribseg.data.io.masks import read_mask
from ribseg.errors import ConfigError, DataError, list_problems
from ribseg.files import scan_folder
from ribseg.interop.batch import convert_to_npz
from ribseg.interop.folders import ADVICE, find_pngs, masks_to_maps, read_pngs
from ribseg.interop.irn import read_irn_maps
from ribseg.interop.psa import read_psa_maps
from ribseg.methods.cam import STRIDE

Layout = Literal["npz", "irn", "amn", "psa", "png", "masks"]
Reader = Callable[[str], LocalizationMaps]
ENDINGS = {"npz": ".npz", "irn": ".npy", "amn": ".npy", "psa": ".npy", "masks": ".png"}


def convert_maps(
    source_dir: str | Path,
    target_dir: str | Path,
    dataset: BaseDataset,
    layout: Layout,
    progress: bool | str = False,
) -> int:
    """Converts a folder of maps or masks to `<image id>.npz` files; returns how many were written.

    Existing files are kept.

    Args:
        source_dir: the folder.
        target_dir: gets the `.npz` files; `ribseg.data.load_maps` reads them.
        dataset: gives the image ids, sizes and classes.
        layout: see `map_reader`.
        progress: how progress is shown, see `ribseg.progress.check_progress`.

    Raises:
        DataError: lists the images whose files are broken, or of another size than their image.
        RibsegError: as `map_reader`.
    """
    return convert_to_npz(dataset.ids, map_reader(source_dir, dataset, layout), target_dir, progress)


def map_reader(source_dir: str | Path, dataset: BaseDataset, layout: Layout) -> Reader:
    """A function that reads the maps of an image id from a folder.

    Images without a label need no file; their maps have no class.

    Args:
        source_dir: the folder.
        dataset: gives the image ids, sizes and classes.
        layout: "npz": `<id>.npz` of ribseg; "irn": pickled `<id>.npy` of IRN, see `read_irn_maps`; "amn":
            the same with the background's map first; "psa": those of PSA, see `read_psa_maps`; "png": gray
            PNGs, see `maps_from_pngs`; "masks": palette PNGs `<id>.png`, or gray ones of 8 bit, with class
            ids, see `masks_to_maps`.

    Returns:
        The function; it raises a DataError if a file is broken or does not match its image.

    Raises:
        ConfigError: unknown layout.
        DatasetNotFoundError: the folder does not exist.
        DataError: lists the images with a label but without a file.
    """
    source = Path(source_dir)
    if layout not in get_args(Layout):
        raise ConfigError(f"expected a layout out of {', '.join(get_args(Layout))}, got {layout!r}")
    pngs, problems = find_pngs(source, dataset.ids, dataset.classes) if layout == "png" else ({}, {})
    there = {i for i, files in pngs.items() if files} or set(scan_folder(source, (ENDINGS.get(layout, ""),)))
    labelled = [i for i, labels in zip(dataset.ids, dataset.labels, strict=True) if labels.any()]
    absent = [i for i in labelled if i not in there]
    if absent:
        problems["images with a label, but without a map"] = absent
    if problems:
        advice = ADVICE if layout == "png" else f"Expected <image id>{ENDINGS[layout]} for every image."
        raise DataError(list_problems(f"the maps in {source} cannot be used", problems, advice))
    readers: dict[str, Reader] = {
        "npz": lambda i: load_maps(source / f"{i}.npz"),
        "irn": lambda i: read_irn_maps(source / f"{i}.npy", dataset.num_classes),
        "amn": lambda i: read_irn_maps(source / f"{i}.npy", dataset.num_classes, background_first=True),
        "psa": lambda i: read_psa_maps(source / f"{i}.npy", dataset.num_classes),
        "png": lambda i: read_pngs(pngs[i] or {}),
        "masks": lambda i: masks_to_maps(read_mask(source / f"{i}.png", dataset.num_classes)),
    }
    return partial(_fitting, dataset, readers[layout], there)


def _fitting(dataset: BaseDataset, read: Reader, there: set[str], image_id: str) -> LocalizationMaps:
    """The maps of an image; raises a DataError unless they match its size and the data set's classes."""
    size = dataset.size(image_id)
    strided = (-(-size[0] // STRIDE), -(-size[1] // STRIDE))
    maps = read(image_id) if image_id in there else None
    if maps is None or len(maps.classes) == 0:
        none = torch.zeros(0, dtype=torch.int64)
        return LocalizationMaps(none, torch.zeros(0, *strided), torch.zeros(0, *size), size)
    found = maps.size if maps.full is None else tuple(maps.full.shape[1:])
    if found not in (None, size) or tuple(maps.strided.shape[1:]) != strided:
        raise DataError(
            f"the maps of {image_id} are of (height, width) {found}, {tuple(maps.strided.shape[1:])} at "
            f"stride {STRIDE}; expected {size} and {strided} as its image has"
        )
    if not 0 <= int(maps.classes.min()) <= int(maps.classes.max()) < dataset.num_classes:
        raise DataError(
            f"the maps of {image_id} are of classes {maps.classes.tolist()}, but the data set has "
            f"{dataset.num_classes}, counted from 0"
        )
    return LocalizationMaps(maps.classes, maps.strided, maps.full, size)
