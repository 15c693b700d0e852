"""Reads and converts folders of maps and masks of other programs.

Files that exist already are kept, and all broken ones are listed at the end.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import torch

from ribseg.checks import check_choice
from ribseg.data.base import BaseDataset
from ribseg.data.check.mask_facts import MaskContent, mask_facts
from ribseg.data.check.mask_notes import SEVERAL
from ribseg.data.class_names import class_order
from ribseg.data.io.maps import LocalizationMaps, load_maps, save_maps
from ribseg.data.io.masks import class_names_of, read_mask
from ribseg.errors import DataError, DatasetNotFoundError, list_problems
from ribseg.files import scan_folder
from ribseg.functional.cam import strided_size
from ribseg.interop.folders import find_pngs, maps_of_full, masks_to_maps, read_pngs
from ribseg.interop.pickled import irn_dictionary, read_irn_maps, read_psa_maps, save_dictionary
from ribseg.interop.saliency import SCALED
from ribseg.progress import track
from ribseg.types import STRIDE

Layout = Literal["npz", "irn", "amn", "psa", "png", "masks"]
Reader = Callable[[str], LocalizationMaps]
Content = TypeVar("Content")
ENDINGS = {"npz": ".npz", "irn": ".npy", "amn": ".npy", "psa": ".npy", "masks": ".png"}
ARRAYS: dict[str, Callable[[Path, int], LocalizationMaps]] = {
    "irn": read_irn_maps,
    "amn": partial(read_irn_maps, background_first=True),
    "psa": read_psa_maps,
}
ADVICE = "Expected gray images <id>/<class name>.png or <id>_<class name>.png, named as in classes.txt."


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
    read = map_reader(source_dir, dataset, layout)
    return _convert(dataset.ids, read, save_maps, target_dir, ".npz", progress)


def convert_arrays(
    source_dir: str | Path,
    target_dir: str | Path,
    num_classes: int,
    layout: Layout = "irn",
    progress: bool | str = False,
) -> int:
    """Converts pickled `<image id>.npy` to `<image id>.npz`, which load without pickle; returns how many.

    Existing files are kept.

    Args:
        source_dir: folder of the `.npy` files.
        target_dir: gets the `.npz` files; `ribseg.data.load_maps` reads them.
        num_classes: C, without background.
        layout: "irn", "amn" or "psa", see `map_reader`.
        progress: how progress is shown, see `ribseg.progress.check_progress`.

    Raises:
        ConfigError: no such layout.
        DatasetNotFoundError: there are no such files.
        DataError: lists the files that are broken, do not match, or contain more than arrays.
    """
    check_choice("layout", layout, tuple(ARRAYS))

    def read(image_id: str) -> LocalizationMaps:
        return ARRAYS[layout](Path(source_dir, f"{image_id}.npy"), num_classes)

    return _convert(_files_in(source_dir, ".npy"), read, save_maps, target_dir, ".npz", progress)


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

    def read(image_id: str) -> dict[str, np.ndarray]:
        return irn_dictionary(Path(source_dir, f"{image_id}.npz"))

    return _convert(_files_in(source_dir, ".npz"), read, save_dictionary, target_dir, ".npy", progress)


def map_reader(source_dir: str | Path, dataset: BaseDataset, layout: Layout) -> Reader:
    """A function that reads the maps of an image id from a folder.

    Images without a label need no file; their maps have no class.

    Args:
        source_dir: the folder.
        dataset: gives the image ids, sizes and classes.
        layout: "npz": `<id>.npz` of ribseg; "irn": pickled `<id>.npy` of IRN, see `read_irn_maps`; "amn":
            the same with the background's map first; "psa": those of PSA, see `read_psa_maps`; "png": gray
            PNGs, see `find_pngs`; "masks": palette PNGs `<id>.png`, or gray ones of 8 bit, with class
            ids, see `masks_to_maps`; ids in the order of a classes.txt beside or above them, if there is one.

    Returns:
        The function; it raises a DataError if a file is broken or does not match its image.

    Raises:
        ConfigError: unknown layout.
        DatasetNotFoundError: the folder does not exist.
        DataError: lists the images with a label but without a file.
    """
    source = Path(source_dir)
    check_choice("layout", layout, get_args(Layout))
    pngs, problems = find_pngs(source, dataset.ids, dataset.classes) if layout == "png" else ({}, {})
    there = {i for i, files in pngs.items() if files} or set(scan_folder(source, (ENDINGS.get(layout, ""),)))
    labelled = [i for i, labels in zip(dataset.ids, dataset.labels, strict=True) if labels.any()]
    absent = [i for i in labelled if i not in there]
    if absent:
        problems["images with a label, but without a map"] = absent
    if problems:
        advice = ADVICE if layout == "png" else f"Expected <image id>{ENDINGS[layout]} for every image."
        raise DataError(list_problems(f"the maps in {source} cannot be used", problems, advice))
    named = class_names_of(source) if layout == "masks" else None
    places = range(dataset.num_classes)
    order = list(places) if named is None else class_order(named, dataset.classes, f"classes.txt of {source}")
    ids = np.arange(256, dtype=np.uint8)
    ids[[place + 1 for place in order]] = [place + 1 for place in places]
    readers: dict[str, Reader] = {
        "npz": lambda i: load_maps(source / f"{i}.npz"),
        "png": lambda i: read_pngs(pngs[i]),
        "masks": lambda i: masks_to_maps(ids[read_mask(source / f"{i}.png", dataset.num_classes)]),
    }
    if layout in ARRAYS:
        readers[layout] = lambda i: ARRAYS[layout](source / f"{i}.npy", dataset.num_classes)
    return partial(_fitting, dataset, readers[layout], there)


def _fitting(dataset: BaseDataset, read: Reader, there: set[str], image_id: str) -> LocalizationMaps:
    """The maps of an image; raises a DataError unless they match its size and the data set's classes."""
    size = dataset.size(image_id)
    strided = strided_size(size)
    maps = read(image_id) if image_id in there else None
    if maps is None or len(maps.classes) == 0:
        return maps_of_full(torch.zeros(0, dtype=torch.int64), torch.zeros(0, *size))
    found = maps.size if maps.full is None else tuple(maps.full.shape[1:])
    if found not in (None, size) or tuple(maps.strided.shape[1:]) != strided:
        raise DataError(
            f"the maps of {image_id} are of (height, width) {found}, {tuple(maps.strided.shape[1:])} at "
            f"stride {STRIDE}; expected {size} and {strided} as its image has"
        )
    if maps.names:
        maps = _by_name(maps, dataset.classes, image_id)
    classes, last = maps.classes.tolist(), dataset.num_classes - 1
    if min(classes) < 0 or max(classes) > last:
        raise DataError(f"the maps of {image_id} are of classes {classes}, expected 0..{last}")
    names = tuple(dataset.classes[c] for c in classes)
    return LocalizationMaps(maps.classes, maps.strided, maps.full, size, names)


def _by_name(maps: LocalizationMaps, classes: Sequence[str], image_id: str) -> LocalizationMaps:
    """Maps that name their classes, with the indices of these names."""
    unknown = [name for name in maps.names if name not in classes]
    if unknown:
        raise DataError(f"the maps of {image_id} are of classes that the data does not have: {unknown}")
    indices = torch.tensor([classes.index(name) for name in maps.names])
    order = indices.argsort()
    full = None if maps.full is None else maps.full[order]
    return LocalizationMaps(indices[order], maps.strided[order], full, maps.size)


def check_imported(folder: str | Path, dataset: BaseDataset) -> None:
    """Checks converted maps of a whole split: that they are scaled, and are of the classes of their images.

    Args:
        folder: of the `.npz` files.
        dataset: the split.

    Raises:
        DataError: no map reaches half of the range; or no image has maps of a class of its label.
    """
    highest, looks = 0.0, list[MaskContent | None]()
    for image_id in dataset.ids:
        maps = load_maps(Path(folder, f"{image_id}.npz"))
        highest = max([highest, *maps.strided.flatten(1).amax(1).tolist()])
        ids = (0, *(c + 1 for c in maps.classes.tolist()))
        looks.append(MaskContent(maps.size or (0, 0), ids, (1,) * len(ids), (0,) * len(ids)))
    if not any(look and look.classes for look in looks):
        return
    if highest < SCALED:
        raise DataError(
            f"no imported map of {dataset.split} exceeds {highest:.3g}: they are not scaled. Expected values "
            "from 0 to 1, each map divided by its maximum; background scores are shares of it"
        )
    facts = mask_facts(looks, dataset.labels)
    if facts.labelled - facts.empty >= SEVERAL and not facts.common:
        raise DataError(
            f"labels and imported maps of {dataset.split} contradict each other: in none of the "
            f"{facts.labelled} labelled images is there a map of a class of the label. Are their classes "
            "counted from 0 in the order of classes.txt, and do they belong to these images?"
        )


def _convert(
    ids: Iterable[str],
    read: Callable[[str], Content],
    write: Callable[[Path, Content], None],
    target_dir: str | Path,
    ending: str,
    progress: bool | str,
) -> int:
    """Converts the images that have no file in the target folder yet; returns how many.

    Args:
        ids: of the images.
        read: gives what is to be written for an image; if it raises a DataError, the others still follow.
        write: writes it to a file, atomically.
        target_dir: gets the files.
        ending: of the files.
        progress: how progress is shown, see `ribseg.progress.check_progress`.

    Raises:
        DataError: lists the images that could not be converted.
    """
    targets = {image_id: Path(target_dir, f"{image_id}{ending}") for image_id in ids}
    todo = [image_id for image_id, target in targets.items() if not target.exists()]
    problems = []
    for image_id in track(todo, "Converting", show=progress, unit="file"):
        try:
            write(targets[image_id], read(image_id))
        except DataError as error:
            problems.append(str(error))
    if problems:
        headline = f"{len(problems)} of {len(todo)} images could not be converted"
        advice = "Correct these and repeat the command: converted files are skipped."
        raise DataError(list_problems(headline, {"broken": problems}, advice, show=len(problems)))
    return len(todo)


def _files_in(folder: str | Path, ending: str) -> list[str]:
    """The sorted stems of all files with this extension.

    Raises:
        DatasetNotFoundError: if the folder cannot be listed or holds no such file.
    """
    ids = sorted(scan_folder(Path(folder), (ending,)))
    if not ids:
        raise DatasetNotFoundError(f"expected <image id>{ending} in {folder}, found none. Name their folder.")
    return ids
