"""Converting many files: existing ones are skipped, and all broken ones are listed at the end."""

from collections.abc import Callable, Iterable
from pathlib import Path

from ribseg.data.io.maps import LocalizationMaps, save_maps
from ribseg.errors import DataError, DatasetNotFoundError, list_problems
from ribseg.files import scan_folder
from ribseg.progress import track


def convert_missing(
    ids: Iterable[str], target: Callable[[str], Path], convert: Callable[[str], None], progress: bool | str
) -> int:
    """Calls `convert` for every image whose target file does not exist; returns how many were written.

    Args:
        ids: of the images.
        target: the file that `convert` writes for an image, atomically.
        convert: raises a DataError if an image cannot be converted; the others are still converted.
        progress: how progress is shown, see `ribseg.progress.check_progress`.

    Raises:
        DataError: lists the images that could not be converted.
    """
    todo = [image_id for image_id in ids if not target(image_id).exists()]
    problems = []
    for image_id in track(todo, "Converting", show=progress, unit="file"):
        try:
            convert(image_id)
        except DataError as error:
            problems.append(str(error))
    if problems:
        headline = f"{len(problems)} of {len(todo)} images could not be converted"
        advice = "Correct these and repeat the command: converted files are skipped."
        raise DataError(list_problems(headline, {"broken": problems}, advice, show=len(problems)))
    return len(todo)


def convert_to_npz(
    ids: Iterable[str], read: Callable[[str], LocalizationMaps], target_dir: str | Path, progress: bool | str
) -> int:
    """Writes the maps that `read` returns for each image id as `<image id>.npz`; see `convert_missing`."""
    target = Path(target_dir)

    def convert(image_id: str) -> None:
        save_maps(target / f"{image_id}.npz", read(image_id))

    return convert_missing(ids, lambda i: target / f"{i}.npz", convert, progress)


def files_in(folder: Path, ending: str) -> list[str]:
    """The sorted stems of all files with this extension.

    Raises:
        DatasetNotFoundError: if the folder cannot be listed or holds no such file.
    """
    ids = sorted(scan_folder(folder, (ending,)))
    if not ids:
        raise DatasetNotFoundError(
            f"expected files <image id>{ending} in {folder}, found none. Name the folder that holds them."
        )
    return ids
