"""Reading images of any format and mode as upright 8-bit RGB arrays."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ribseg.errors import DAMAGED, DataError, reason

Channels = tuple[float, float, float]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_ORIENTATION = 0x0112  # EXIF tag
# Value of that tag -> the transposition that makes the image upright; 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def three(values: Sequence[float]) -> Channels:
    """A tuple of three numbers, one per channel; raises a ValueError unless there are three."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue


class ImageHeader(NamedTuple):
    """(height, width) in pixels: `size` of what read_image returns, `stored` before the EXIF rotation."""

    size: tuple[int, int]
    stored: tuple[int, int]


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Opens an image file with Pillow; errors of opening and of decoding inside become DataErrors."""
    try:
        with Image.open(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, limit {limit}")
            if image.format == "EPS":
                raise ValueError("it is EPS, a program that another one would have to run")
            yield image
    except DataError:
        raise
    except _BOMB as error:
        raise DataError(
            f"{path} is too large to be decoded safely: {error}. Scale it down, or raise"
            " PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{path} is absent. Fetch it, or take it off the list.") from error
    except DAMAGED as error:
        raise DataError(
            f"{path} cannot be read as an image: {reason(error)}. Expected a complete JPEG"
            " or PNG; fetch it again."
        ) from error


def load_pixels(image: Image.Image, path: str | Path) -> None:
    """Decodes an opened image; for a PNG it first verifies the checksums, which Pillow's decoder ignores.

    To be called within `open_image`, which handles Pillow's errors.
    """
    if image.format == "PNG":
        with Image.open(path) as unread:  # a verified image cannot be loaded afterwards
            unread.verify()
    image.load()


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """Reads an image of any mode: gray, palette, alpha (dropped), CMYK, 1-bit, 16-bit (divided by 257).

    Args:
        path: JPEG, PNG, or another format of Pillow. The EXIF orientation is applied.

    Returns:
        (H, W, 3) uint8 RGB, writable and contiguous.

    Pillow does not detect a truncated JPEG with an end marker (gray below the cut), or an interlaced PNG with
    fewer rows than in its header (black there).

    Raises:
        DataError: if the file is missing, truncated, not an image, or larger than Pillow's limit against
            decompression bombs.
    """
    with open_image(path) as image:
        load_pixels(image, path)
        return upright_rgb(image, path)


def upright_rgb(image: Image.Image, name: str | Path) -> np.ndarray:
    """The pixels of an opened image of any mode, with its EXIF orientation applied; see `read_image`.

    Args:
        image: loaded.
        name: of the image, for errors.

    Returns:
        (H, W, 3) uint8 RGB, writable and contiguous.

    Raises:
        DataError: the range of its pixels is unknown.
    """
    turn = _UPRIGHT.get(orientation(image))
    upright: Image.Image = image if turn is None else image.transpose(turn)
    if upright.mode == "F":
        raise DataError(f"{name} holds floating-point pixels, whose range is unknown. Convert it to 8 bit.")
    if upright.mode.startswith("I"):
        gray = _to_8_bit(np.asarray(upright), name)
        return np.repeat(gray[..., None], 3, axis=2)
    return np.array(upright.convert("RGB"))


def as_image(image: Any) -> np.ndarray:
    """An image of any common kind as (H, W, 3) uint8 RGB.

    Args:
        image: a path; a Pillow image; an (H, W, 3) or (H, W) uint8 array; or a (3, H, W) floating-point
            tensor in [0, 1], or of uint8.

    Raises:
        DataError: it is of another kind, or cannot be read.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return upright_rgb(image, "the image")
    if hasattr(image, "detach"):  # a tensor; this module does not import torch
        image = _unit_range(image.detach().cpu().numpy())
    if isinstance(image, np.ndarray) and image.ndim == 2 and image.dtype == np.uint8:
        image = np.repeat(image[..., None], 3, axis=2)
    return check_pixels(image, "the image")


def _unit_range(values: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 from (3, H, W) in [0, 1], or uint8."""
    if values.ndim != 3 or values.shape[0] != 3:
        raise DataError(f"the image: expected a tensor (3, H, W), found {values.shape}.")
    if values.dtype != np.uint8:
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            raise DataError(
                "the image: expected a tensor in [0, 1], not normalised, found values from "
                f"{values.min():.3g} to {values.max():.3g}."
            )
        values = np.round(values * 255).astype(np.uint8)
    return np.ascontiguousarray(values.transpose(1, 2, 0))


def check_pixels(image: np.ndarray, name: str) -> np.ndarray:
    """Returns the image; raises a DataError unless it is (H, W, 3) uint8 and not empty."""
    fits = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3
    if not fits or image.dtype != np.uint8 or image.size == 0:
        found = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
        raise DataError(f"{name}: expected an array (H, W, 3) of uint8, found {found}.")
    return image


def read_header(path: str | Path) -> ImageHeader:
    """Reads an image's size from its header, without decoding the pixels.

    Raises:
        DataError: as `read_image`, if the header shows the problem.
    """
    with open_image(path) as image:
        stored = (image.height, image.width)
        # Orientations 5 to 8 swap the sides.
        return ImageHeader(stored[::-1] if orientation(image) >= 5 else stored, stored)


def rescale(image: np.ndarray, scale: float) -> np.ndarray:
    """Resizes as the released programs do: Pillow's bicubic filter, sides int(np.round(side * scale)).

    Args:
        image: (H, W, 3) uint8.
        scale: positive factor.

    Returns:
        (h, w, 3) uint8, each side at least one pixel; the array itself if the size does not change.
    """
    height, width = rescaled_size(image.shape[:2], scale)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def rescaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """The (height, width) after `rescale`.

    >>> rescaled_size((375, 500), 0.5), rescaled_size((1, 500), 0.1)
    ((188, 250), (1, 50))
    """
    height, width = (max(1, int(np.round(side * scale))) for side in size)
    return height, width


def capped(image: np.ndarray, max_side: int | None) -> np.ndarray:
    """The image, scaled down if its longer side has more than `max_side` pixels; None for no limit.

    >>> capped(np.zeros((40, 100, 3), np.uint8), 50).shape
    (20, 50, 3)
    """
    longer = max(image.shape[:2])
    return image if max_side is None or longer <= max_side else rescale(image, max_side / longer)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 is upright, as is one without or with another."""
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _to_8_bit(gray: np.ndarray, path: str | Path) -> np.ndarray:
    if gray.min() < 0 or gray.max() > 65535:
        raise DataError(f"{path} holds {gray.min()} to {gray.max()}, expected 16 bit. Convert it to 8 bit.")
    return np.round(gray / 257).astype(np.uint8)
