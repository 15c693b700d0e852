"""Images that a command reads, files that it writes, and what could not be done."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ribseg.data.voc import IMAGE_ENDINGS
from ribseg.errors import DataError, DeviceMemoryError, RibsegError, shortened


def targets_of(images: Sequence[Path], folder: Path, ending: str) -> dict[Path, Path]:
    """What is written -> what is read; folders stand for their images.

    Raises:
        DataError: two images would be written to one file, or over themselves; or a folder holds none.
    """
    targets: dict[Path, Path] = {}
    for path in _files(images):
        target = folder / f"{path.stem}{ending}"
        if target in targets:
            raise DataError(f"{targets[target]} and {path} would both become {target}; give them one by one")
        if target.resolve() == path.resolve():
            raise DataError(f"{target} would replace the image itself; choose another folder with --out")
        targets[target] = path
    return targets


def each_image(
    targets: Iterable[tuple[Path, Path]],
    work: Callable[[Path, Path], None],
    number: int,
    done: str,
    failure: str,
) -> None:
    """Works on one image after the other, and names all that could not be done at the end.

    Such an image does not keep the others from being done; an output folder that cannot be written to ends
    the command at once.

    Args:
        targets: (what is written, what is read).
        work: on one of them.
        number: of images.
        done: what is said at the end, behind the number.
        failure: what is said of the others, as "could not be segmented".

    Raises:
        DataError: at the end; with the reason for every image that failed.
        RibsegError: at once; with the images that had failed until then.
    """
    failed: dict[Path, str] = {}
    try:
        for target, image in targets:
            try:
                work(target, image)
            except (DataError, DeviceMemoryError) as error:
                failed[image] = str(error)
    except (RibsegError, KeyboardInterrupt) as error:
        text = str(error) or "interrupted; the files that are written are whole"
        raise RibsegError(_with_reasons(text, failed)) from error
    print(f"{number - len(failed)} {done}")
    if failed:
        raise DataError(_with_reasons(f"{len(failed)} of {number} images {failure}", failed))


def _with_reasons(text: str, failed: Mapping[Path, str]) -> str:
    """The text, and every image that failed with the reason."""
    reasons = [why if str(image) in why else f"{image}: {why}" for image, why in failed.items()]
    return "\n  ".join([text, *map(shortened, reasons)])


def _files(images: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in images:
        files += _images_in(path) if path.is_dir() else [path]
    return files


def _images_in(folder: Path) -> list[Path]:
    """All images of a folder, also two of one name (a.jpg and a.png), of which `targets_of` will complain."""
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDINGS and p.is_file())
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror or error}") from error
    if not found:
        raise DataError(f"the folder {folder} holds no images ({', '.join(IMAGE_ENDINGS)})")
    return found
