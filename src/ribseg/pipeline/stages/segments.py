"""The segments of the variants with segments: their files, checks and digest."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ribseg.errors import ConfigError, DataError, list_problems
from ribseg.files import scan_folder
from ribseg.interop import check_segment_file, read_segments
from ribseg.methods import segments as superpixels
from ribseg.methods.segments import ENDINGS, check_installed
from ribseg.pipeline.recipe.context import Context
from ribseg.progress import track
from ribseg.store.artefact import folder_digest


def counted_segments(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings `refine.segments` with a digest of the files instead of their folder."""
    if settings["source"] in ENDINGS and settings["folder"] is not None:
        return settings | {"folder": folder_digest(settings["folder"])}
    return settings


def segments_of(image: np.ndarray, path: Path | None, settings: dict[str, Any]) -> Tensor | None:
    """The segments of an image, as `ribseg.functional.vote_segments` takes them; None without a file.

    Args:
        image: (H, W, 3) uint8 RGB.
        path: of their file; None for superpixels, and for an image without a label, which needs no file.
        settings: `refine.segments`.
    """
    if settings["source"] in ENDINGS:
        return None if path is None else read_segments(path, (image.shape[0], image.shape[1]))
    if settings["source"] == "slic":
        return superpixels.slic(image, **settings["slic"])
    return superpixels.felzenszwalb(image, **settings["felzenszwalb"])


def segments_file(context: Context, image_id: str) -> Path | None:
    """The file with an image's segments; None for superpixels.

    Raises:
        ConfigError: the source needs refine.segments.folder, which is not set.
    """
    settings = context.cfg.refine.segments
    if settings.source not in ENDINGS:
        return None
    ending = ENDINGS[settings.source]
    if settings.folder is None:
        raise ConfigError(
            f"refine.segments.source={settings.source} needs refine.segments.folder=PATH with files "
            f"<image id>{ending}"
        )
    return Path(settings.folder) / f"{image_id}{ending}"


def check_segments_there(context: Context) -> None:
    """Checks that every image with a class has a file of segments, or that superpixels can be made.

    Raises:
        ConfigError: a setting or a package is missing.
        DataError: files are missing; lists them.
    """
    source = context.cfg.refine.segments.source
    if source not in ENDINGS:
        check_installed()
        return
    folder, ending = Path(segments_file(context, "") or "").parent, ENDINGS[source]
    there = scan_folder(folder, (ending,))
    absent = [i for i in context.data.all_ids if has_class(context, i) and i not in there]
    if absent:
        unknown = sorted(set(there) - set(context.data.all_ids))
        problems = {"images without any": absent} | ({"files of no image": unknown} if unknown else {})
        advice = f"Expected a file <image id>{ending} for every image with a class."
        raise DataError(list_problems(f"the segments in {folder} cannot be used", problems, advice))


def check_segment_files(context: Context) -> None:
    """Checks kind and size of every file of segments, before the first stage.

    Raises:
        DataError: files cannot be used; lists them.
    """
    wrong: list[str] = []
    ids = [i for i in context.data.all_ids if has_class(context, i)]
    for image_id in track(ids, "Checking segments", len(ids), context.cfg.progress, context.console, "file"):
        path = segments_file(context, image_id)
        if path is None:
            return
        try:
            check_segment_file(path, context.data.folders[image_id].size(image_id))
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        folder = context.cfg.refine.segments.folder
        advice = "Make them again, from these images."
        raise DataError(list_problems(f"the segments in {folder} cannot be used", {"files": wrong}, advice))


def has_class(context: Context, image_id: str) -> bool:
    """Whether an image has a label."""
    folder = context.data.folders[image_id]
    return bool(folder.labels[folder.index(image_id)].any())
