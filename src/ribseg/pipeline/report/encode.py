"""Pictures as data URIs, small enough that hundreds of images fit into one page."""

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor

from ribseg.functional.cam import size_within

SIDE = 288  # pixels of the longer side of an image in the gallery
THUMBNAIL = 72
MAP_SIDE = 96  # of a map without steps; maps are smooth, and the page enlarges them bilinearly


def photograph(image: np.ndarray, side: int = SIDE, quality: int = 78) -> str:
    """A data URI of an (H, W, 3) uint8 image, scaled down to a longer side of `side` pixels."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    return _uri(picture, "jpeg", quality=quality)


def label_picture(mask: np.ndarray, palette: np.ndarray, side: int = SIDE) -> str:
    """A data URI of an (H, W) uint8 mask in the palette's colours, with transparent background (label 0)."""
    height, width = size_within(mask.shape, side)
    picture = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    picture.putpalette(palette.astype(np.uint8).tobytes())
    return _uri(picture, "png", transparency=0, optimize=True)


def map_sheet(steps: Tensor) -> str:
    """A data URI of (S, K, h, w) maps in [0, 1]: one gray picture with a row per class, a column per step."""
    pixels = (255 * steps).round().clamp(0, 255).byte().numpy()
    number, classes, height, width = pixels.shape
    sheet = pixels.transpose(1, 2, 0, 3).reshape(classes * height, number * width)
    return _uri(Image.fromarray(sheet), "png", optimize=True)


def _uri(picture: Image.Image, kind: str, **settings: object) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
