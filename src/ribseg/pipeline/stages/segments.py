"""The segments of the variants with segments: their files and checks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ribseg.errors import ConfigError, DataError, list_problems
from ribseg.files import scan_folder
from ribseg.interop import check_segment_file, read_segments
from ribseg.interop.saliency import SCALED, read_gray
from ribseg.methods import segments as superpixels
from ribseg.methods.segments import ENDINGS, check_installed
from ribseg.pipeline.recipe.session import Session
from ribseg.progress import track


def segments_of(image: np.ndarray, image_id: str, settings: Mapping[str, Any]) -> Tensor:
    """The segments of an image, as `ribseg.functional.vote_segments` takes them: from a file, or superpixels.

    Args:
        image: (H, W, 3) uint8 RGB.
        image_id: of the image.
        settings: `refine.segments`.
    """
    source = settings["source"]
    if source in ENDINGS:
        return read_segments(segments_path(settings, image_id), (image.shape[0], image.shape[1]))
    make = superpixels.slic if source == "slic" else superpixels.felzenszwalb
    return make(image, **settings[source])


def segments_path(settings: Mapping[str, Any], image_id: str) -> Path:
    """The file with an image's segments, of a source with files."""
    return Path(settings["folder"], f"{image_id}{ENDINGS[settings['source']]}")


def check_segments_there(session: Session, settings: Mapping[str, Any]) -> None:
    """Checks that every image with a class has a file of segments, or that superpixels can be made.

    Raises:
        ConfigError: a setting or a package is missing.
        DataError: files are missing; lists them.
    """
    source, folder = settings["source"], settings["folder"]
    if source not in ENDINGS:
        check_installed()
        return
    if folder is None:
        files = f"files <image id>{ENDINGS[source]}"
        raise ConfigError(f"refine.segments.source={source} needs refine.segments.folder=PATH with {files}")
    check_files_there(session, "segments", Path(folder), ENDINGS[source])


def check_files_there(session: Session, what: str, folder: Path, ending: str) -> None:
    """Raises a DataError that lists the images with a class but without a file, and files of no image."""
    there, data = scan_folder(folder, (ending,)), session.data
    absent = [image_id for image_id in data.labelled_ids if image_id not in there]
    if absent:
        problems = {"images without any": absent, "files of no image": sorted(set(there) - set(data.all_ids))}
        listed = {kind: items for kind, items in problems.items() if items}
        advice = f"Expected a file <image id>{ending} for every image with a class."
        raise DataError(list_problems(f"the {what} in {folder} cannot be used", listed, advice))


def check_saliency_files(session: Session, folder: Path, ids: Sequence[str]) -> None:
    """Checks that all saliency maps are gray images, and that together they use their range.

    Raises:
        DataError: files cannot be used, or are turned, and lists them; or no pixel of all is bright, as where
            they hold 0 and 1, or 8-bit values in 16 bits; or none is dark.
    """
    lowest, highest, wrong = 1.0, 0.0, []
    title = "Checking saliency maps"
    for image_id in track(ids, title, len(ids), session.progress, session.console, "file"):
        try:
            scores = read_gray(folder / f"{image_id}.png")
        except DataError as error:
            wrong.append(str(error))
            continue
        height, width = session.data.folders[image_id].size(image_id)
        if scores.shape == (width, height) != (height, width):
            wrong.append(f"{image_id}.png is turned: was it made without the photograph's EXIF rotation?")
        lowest, highest = min(lowest, float(scores.min())), max(highest, float(scores.max()))
    if wrong:
        problem = f"the saliency maps in {folder} cannot be used"
        raise DataError(list_problems(problem, {"files": wrong}, "Make them again, from these images."))
    if ids and lowest > 1 - SCALED:
        raise DataError(f"every pixel of the {len(ids)} images in {folder} is salient; make them again")
    if ids and highest < SCALED:
        raise DataError(
            f"no pixel of the {len(ids)} images in {folder} exceeds {highest:.2g} of white: expected "
            "gray values up to 255 in 8 bits, or 65535 in 16. Multiply them, if they hold 0 and 1"
        )


def check_segment_files(session: Session, settings: Mapping[str, Any]) -> None:
    """Checks kind and size of every file of segments, before the first stage.

    Raises:
        DataError: files cannot be used; lists them.
    """
    wrong: list[str] = []
    data, ids = session.data, session.data.labelled_ids
    for image_id in track(ids, "Checking segments", len(ids), session.progress, session.console, "file"):
        try:
            check_segment_file(segments_path(settings, image_id), data.folders[image_id].size(image_id))
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        problem = f"the segments in {settings['folder']} cannot be used"
        raise DataError(list_problems(problem, {"files": wrong}, "Make them again, from these images."))
