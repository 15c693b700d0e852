"""Input images and output files of a command, and its errors per image."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from ribseg.errors import DataError, DeviceMemoryError, RibsegError, shortened
from ribseg.files import IMAGE_ENDINGS
from ribseg.workers import cores, forks, ordered_map, worker_count

# Kinds of images that are looked for in a folder of photographs; any kind that Pillow reads can be named.
READ = (*IMAGE_ENDINGS, ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif")


def targets_of(images: Sequence[Path], folder: Path, ending: str) -> dict[Path, Path]:
    """Output file -> input image, for images and folders of images.

    Raises:
        DataError: two images have the same output file, an image would be overwritten, or a folder has none.
    """
    targets: dict[Path, Path] = {}
    if any(path.is_dir() and path.resolve() == folder.resolve() for path in images):
        raise DataError(f"{folder} is the folder of the images; choose another with --out")
    files = [file for path in images for file in (_images_in(path) if path.is_dir() else [path])]
    for path in files:
        target = folder / f"{path.stem}{ending}"
        if target in targets:
            raise DataError(
                f"{targets[target]} and {path} would both become {target}; give each its own --out"
            )
        if target.resolve() == path.resolve():
            raise DataError(f"{target} would replace the image itself; choose another folder with --out")
        targets[target] = path
    return targets


def each_image(
    targets: Mapping[Path, Path],
    work: Callable[[Path, Path], str],
    title: str,
    done: str,
    failure: str,
    quiet: bool,
    then: Callable[[Mapping[Path, Path]], None] | None = None,
) -> None:
    """Calls `work` for each image, in a process for each core; lists those that failed at the end.

    A failed image does not stop the others; an output folder that cannot be written to ends the command.

    Args:
        targets: output file -> input image.
        work: takes both; returns a line to be printed, or "".
        title: of the progress.
        done: printed at the end, after the number of successful images.
        failure: message for the failed ones, as "could not be segmented".
        quiet: no progress, no lines.
        then: called with the successful ones, if there are any, before the command ends.

    Raises:
        DataError: at the end, with the reason for every failed image.
        RibsegError: at once, with the images that have failed so far.
    """
    from rich.console import Console

    from ribseg.progress import track

    failed: dict[Path, str] = {}
    console, number = Console(quiet=quiet), len(targets)
    # With fewer images each is better off with the threads of all cores.
    processes = worker_count("auto") if forks() and number >= cores() else 1
    try:
        with closing(ordered_map(partial(_attempted, work), targets.items(), processes)) as results:
            shown = track(results, title, number, show=not quiet, console=console)
            for image, (line, error) in zip(targets.values(), shown, strict=True):
                if error:
                    failed[image] = error
                elif line:
                    console.print(line, highlight=False, markup=False)
        made = {target: image for target, image in targets.items() if image not in failed}
        if then is not None and made:
            then(made)
    except (RibsegError, KeyboardInterrupt) as error:
        text = str(error) or "interrupted; the written files are complete"
        raise RibsegError(_with_reasons(text, failed)) from error
    print(f"{number - len(failed)} {done}")
    if failed:
        raise DataError(_with_reasons(f"{len(failed)} of {number} images {failure}", failed))


def _attempted(work: Callable[[Path, Path], str], item: tuple[Path, Path]) -> tuple[str, str]:
    """The line of an image, or why it failed."""
    try:
        return work(*item), ""
    except (DataError, DeviceMemoryError) as error:
        return "", str(error)


def _with_reasons(text: str, failed: Mapping[Path, str]) -> str:
    """The text, followed by every failed image with the reason."""
    reasons = [why if str(image) in why else f"{image}: {why}" for image, why in failed.items()]
    return "\n  ".join([text, *map(shortened, reasons)])


def _images_in(folder: Path) -> list[Path]:
    """All images in a folder, also with equal stems (a.jpg and a.png), which `targets_of` reports.

    Hidden files are none: macOS writes `._a.jpg` beside `a.jpg` on other file systems. Says which other files
    are passed over.
    """
    try:
        files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror or error}") from error
    found = [path for path in files if path.suffix.lower() in READ]
    if not found:
        raise DataError(f"the folder {folder} holds no images ({', '.join(READ)})")
    others = [path.name for path in files if path not in found]
    if others:
        print(
            f"{folder}: {len(others)} files are passed over ({shortened(', '.join(others))})", file=sys.stderr
        )
    return found
