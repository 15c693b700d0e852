"""Class-agnostic segments of other programs: label images, and COCO's run-length codes as SAM writes them."""

import json
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from ribseg.data.coco.instances import runs_of
from ribseg.data.io.images import load_pixels, open_image
from ribseg.errors import DataError, reason

DEEP = ("I;16", "I;16B", "I")  # modes of a PNG with 16 bit, by version of Pillow
FORMS = (
    "a list of masks with `segmentation`: {size: [height, width], counts: run-length code}, as SAM's "
    "automatic mask generator gives it with output_mode='coco_rle', or an object with such a list under "
    "`annotations`"
)


def read_segments(path: str | Path, size: tuple[int, int]) -> Tensor:
    """The segments of an image from a file, for `ribseg.functional.vote_segments`.

    Args:
        path: `.png`, a label image: gray of 8 or 16 bit or palette, 0 = in no segment, equal numbers = one
            segment. Or `.json`, masks as COCO's run-length codes, compressed or not: SAM's list, or an object
            with the list under `annotations`, as the files of SA-1B. They may overlap.
        size: (H, W) of the image.

    Returns:
        (H, W) int64 of a label image; (S, H, W) bool of run-length codes, S may be 0.

    Raises:
        DataError: the file is missing, broken, of another kind, or of another size.
    """
    path = Path(path)
    check_segment_file(path, size)
    if path.suffix.lower() == ".png":
        with open_image(path) as image:
            load_pixels(image, path)
            return torch.from_numpy(np.asarray(image).astype(np.int64))
    return _decoded(path, size)


def check_segment_file(path: str | Path, size: tuple[int, int]) -> None:
    """Checks a file of segments without decoding it; arguments and errors as `read_segments`."""
    path = Path(path)
    if path.suffix.lower() == ".png":
        with open_image(path) as image:
            # Pillow scales gray of 2 and 4 bit to 0..255; the numbers then differ, but stay distinct.
            if image.format != "PNG" or image.mode not in ("P", "L", "1", *DEEP):
                raise DataError(
                    f"{path} is a {image.format} of mode {image.mode}; expected a label image: a gray PNG of "
                    "8 or 16 bit or a palette PNG, with a number for each segment and 0 for none"
                )
            found = {(image.height, image.width)}
    else:
        found = {(code["size"][0], code["size"][1]) for code in _codes(path)}
    if wrong := found - {tuple(size)}:
        height, width = sorted(wrong)[0]
        raise DataError(
            f"{path} holds segments of {height} x {width} pixels (height x width), but its image has "
            f"{size[0]} x {size[1]}; make the segments from the images as they are, or resize them with "
            "nearest neighbours"
        )


def _codes(path: Path) -> list[dict[str, Any]]:
    """The run-length codes of a file, checked as far as their structure goes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is absent; make the segments of this image") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {reason(error)}; expected {FORMS}") from error
    masks = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(masks, list):
        raise DataError(f"{path} holds {type(content).__name__} without a list of masks; expected {FORMS}")
    codes = [mask.get("segmentation") if isinstance(mask, dict) else None for mask in masks]
    for number, code in enumerate(codes):
        if not _is_code(code):
            raise DataError(f"mask {number} of {path} has no run-length code; expected {FORMS}")
    return codes  # type: ignore[return-value]


def _is_code(code: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(code, dict):
        return False
    size, counts = code.get("size"), code.get("counts")
    whole = isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    runs = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    return whole and (runs or isinstance(counts, str))


def _decoded(path: Path, size: tuple[int, int]) -> Tensor:
    height, width = size
    masks = [np.zeros((0, height, width), bool)]
    for number, code in enumerate(_codes(path)):
        counts = code["counts"]
        runs = counts if isinstance(counts, list) else runs_of(counts)
        if runs is None or min(runs, default=0) < 0 or sum(runs) != height * width:
            found = "a broken code" if runs is None else f"{sum(runs)}"
            raise DataError(
                f"mask {number} of {path}: expected runs that add up to {height * width} pixels, found "
                f"{found}; write the file again"
            )
        # Columns come first, and the first run is outside of the mask.
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        masks.append(flat.reshape(width, height).T[None])
    return torch.from_numpy(np.concatenate(masks))
