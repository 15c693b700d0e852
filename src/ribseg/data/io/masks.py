"""Reading and writing masks: PNGs whose pixel values are class ids (0 background, 255 ignore)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ribseg.data.io.images import load_pixels, open_image
from ribseg.errors import DataError
from ribseg.files import atomic_file, atomic_write, read_lines
from ribseg.types import IGNORE as IGNORE

CLASSES = "classes.txt"


def write_class_names(folder: str | Path, classes: Sequence[str]) -> None:
    """Writes classes.txt into a folder of masks: row c is the name of id c + 1."""
    atomic_write(Path(folder, CLASSES), "\n".join(classes).encode())


def class_names_of(folder: str | Path) -> list[str] | None:
    """The names in the classes.txt of a folder of masks, or of the folder above; None without one."""
    places = (Path(folder, CLASSES), Path(folder).absolute().parent / CLASSES)
    return next((read_lines(path) for path in places if path.is_file()), None)


def check_class_names(folder: str | Path, names: Sequence[str]) -> None:
    """Raises a DataError if a folder of masks has other names, or in another order, in its classes.txt."""
    own = class_names_of(folder)
    if own is not None and own != list(names):
        raise DataError(
            f"the masks in {folder} have the classes {own[:5]}, by classes.txt, expected {list(names)[:5]}"
        )


def voc_palette() -> np.ndarray:
    """PASCAL VOC's palette: (256, 3) uint8 RGB, row = class id; the id's bits are spread over the channels.

    >>> voc_palette()[[1, 255]].tolist()
    [[128, 0, 0], [224, 224, 192]]
    """
    ids = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def read_mask(path: str | Path, num_classes: int | None = None) -> npt.NDArray[np.uint8]:
    """Reads a mask as class ids; palette indices are not converted to colours.

    Args:
        path: palette PNG, or gray PNG of 8 bit.
        num_classes: number of classes without background; None leaves the range unchecked.

    Returns:
        (H, W) uint8 class ids; 0 is background, 255 is ignore.

    Raises:
        DataError: if the file is missing or broken, is not a palette or 8-bit gray PNG, or has ids that are
            neither in 0..num_classes nor 255.
    """
    with open_image(path) as image:
        _check_mode(image, path)
        load_pixels(image, path)
        mask = np.array(image).astype(np.uint8, copy=False)
    return mask if num_classes is None else check_mask(mask, str(path), num_classes)


def check_mask(mask: np.ndarray, name: str, num_classes: int) -> np.ndarray:
    """Returns the mask; raises a DataError unless it is (H, W) uint8 of 0..num_classes and 255."""
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.uint8 or mask.size == 0:
        found = f"{getattr(mask, 'dtype', type(mask).__name__)} {getattr(mask, 'shape', '')}"
        raise DataError(f"{name}: expected an array (H, W) of uint8, found {found}.")
    ids = mask_ids(mask)
    wrong = ids[(ids > num_classes) & (ids != IGNORE)].tolist()
    if wrong:
        raise DataError(
            f"{name} holds the class ids {wrong}; expected 0..{num_classes} and {IGNORE} for ignore. "
            + _cure(wrong)
        )
    return mask


def mask_colours(path: str | Path) -> np.ndarray | None:
    """The (256, 3) uint8 RGB palette of a mask; None for a gray one. Raises a DataError as `mask_size`."""
    with open_image(path) as image:
        palette = image.getpalette("RGB") if image.mode == "P" else None
    if palette is None:
        return None
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours.reshape(-1)[: len(palette)] = palette
    return colours


def mask_size(path: str | Path) -> tuple[int, int]:
    """Reads (height, width) of a mask from its header, and checks its mode.

    Raises:
        DataError: as `read_mask`, if the header shows the problem.
    """
    with open_image(path) as image:
        _check_mode(image, path)
        return image.height, image.width


def mask_ids(mask: np.ndarray) -> np.ndarray:
    """The ids that occur in a (H, W) uint8 mask, ascending; much faster than np.unique."""
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=256))


def write_mask(path: str | Path, mask: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Writes a mask as a palette PNG, as VOC's server expects it; atomically, with reproducible bytes.

    Args:
        path: of the file; its folder is created.
        mask: (H, W) integers in 0..255.
        palette: (256, 3) uint8 RGB; None for VOC's.

    Raises:
        DataError: if the mask's or the palette's shape or range is wrong.
        RibsegError: if the folder cannot be written to.
    """
    palette = voc_palette() if palette is None else np.asarray(palette)
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "iub" or mask.min() < 0 or mask.max() > 255:
        raise DataError(
            f"cannot write {path}: expected a mask (H, W) of integers in 0..255, found {mask.dtype}"
            f" {mask.shape}{f' from {mask.min()} to {mask.max()}' if mask.size else ''}."
        )
    if palette.shape != (256, 3) or palette.dtype != np.uint8:
        raise DataError(f"expected a palette (256, 3) of uint8, found {palette.dtype} {palette.shape}.")
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(palette.tobytes())
    with atomic_file(path) as file:
        image.save(file, format="PNG")


def _cure(wrong: list[int]) -> str:
    """Advice for ids that belong to no class."""
    grays = np.asarray(Image.fromarray(voc_palette()[None]).convert("L"))[0, [*range(1, 21), IGNORE]]
    if set(wrong) <= set(grays.tolist()):
        return (
            "These are the gray values of VOC's colours: the mask was converted to gray. Take the palette's "
            "indices instead (PIL's Image.open without convert)."
        )
    return "Correct the mask, or add the missing names to classes.txt."


def _check_mode(image: Image.Image, path: str | Path) -> None:
    # Pillow scales 2- and 4-bit gray to 0..255, which changes the ids; only the tiles' raw mode shows it.
    tiles = getattr(image, "tile", [])
    raw = tiles[0][3] if tiles else image.mode
    spread = image.mode == "L" and isinstance(raw, str) and raw.startswith("L;")
    # Other formats renumber or scale the values (GIF, PGM), or are lossy (JPEG).
    if spread or image.format != "PNG" or image.mode not in ("P", "L", "1"):
        raise DataError(
            f"{path} is a {image.format} of mode {raw if spread else image.mode}; expected a palette PNG or"
            " a gray PNG of 8 bit that holds class ids. Convert it, each colour to its id;"
            " ribseg.data.write_mask writes such."
        )
