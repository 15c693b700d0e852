"""Gray images of scores."""

from pathlib import Path

import numpy as np

from ribseg.data.io.images import load_pixels, open_image
from ribseg.errors import DataError


def read_gray(path: str | Path) -> np.ndarray:
    """Reads a gray image of 1 to 16 bit as scores; black is 0, white is 1.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        DataError: if the file is missing or broken, or is a palette or colour image.
    """
    with open_image(path) as image:
        load_pixels(image, path)
        mode, pixels = image.mode, np.array(image)
    if mode == "RGB" and (pixels == pixels[..., :1]).all():
        mode, pixels = "L", pixels[..., 0]  # gray saved as RGB, as some programs do
    if mode in ("1", "L"):
        return pixels.astype(np.float32) / (1 if mode == "1" else 255)
    if mode.startswith("I") and pixels.min() >= 0 and pixels.max() <= 65535:
        return pixels.astype(np.float32) / 65535
    raise DataError(f"{path} is an image of mode {mode}; expected a gray PNG of 8 or 16 bit. Convert it.")
