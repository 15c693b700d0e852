"""Files of text embeddings of class names, for methods over CLIP; `ribseg text` makes them."""

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ribseg.errors import ConfigError, DataError, reason
from ribseg.files import atomic_write
from ribseg.models.weights_file import listed

ARRAYS = ("names", "classes", "background_names", "background")
BROKEN = (OSError, ValueError, KeyError, EOFError, struct.error, zipfile.BadZipFile, zlib.error)
MAKE = "make one with `ribseg text FILE.npz`"


@dataclass(eq=False)
class TextEmbeddings:
    """Embeddings of texts about classes and about backgrounds, by one text encoder.

    Attributes:
        names: of the C classes.
        classes: (C, E) float32, a row per class.
        background_names: of the B kinds of background, as "sky".
        background: (B, E) float32, a row per kind; B may be 0.

    Raises:
        DataError: the arrays do not fit the names or each other, or a row is zero or not finite.
    """

    names: tuple[str, ...]
    classes: Tensor
    background_names: tuple[str, ...]
    background: Tensor

    def __post_init__(self) -> None:
        """Checks the arrays."""
        shapes = [tuple(rows.shape) for rows in (self.classes, self.background)]
        width = shapes[0][-1] if shapes[0] else 0
        expected = [(len(self.names), width), (len(self.background_names), width)]
        if shapes != expected or not self.names or not width:
            raise DataError(
                f"expected embeddings of shapes (C, E) and (B, E) for {len(self.names)} classes and "
                f"{len(self.background_names)} backgrounds, got {shapes[0]} and {shapes[1]}"
            )
        if len(set(self.names)) < len(self.names):
            raise DataError("expected a name for each class, got one twice")
        lengths = torch.cat([self.classes, self.background]).norm(dim=1)
        if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
            raise DataError("expected finite embeddings, none of them zero")

    def of(self, names: Sequence[str]) -> Tensor:
        """(len(names), E) embeddings of classes by name, in this order.

        Raises:
            ConfigError: a class has none; lists all of these.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise ConfigError(
                f"the text embeddings lack {len(missing)} of {len(names)} classes: {listed(missing)}; they "
                f"have {listed(self.names)}. Make a file for these: ribseg text FILE.npz --names NAMES.txt"
            )
        return self.classes[[self.names.index(name) for name in names]]

    def save(self, path: str | Path) -> None:
        """Writes an .npz file for `read_text_embeddings`, with the attributes as arrays.

        Raises:
            RibsegError: it cannot be written.
        """
        buffer = io.BytesIO()
        np.savez(
            buffer,
            names=np.asarray(self.names, dtype=str),
            classes=self.classes.float().cpu().numpy(),
            background_names=np.asarray(self.background_names, dtype=str),
            background=self.background.float().cpu().numpy(),
        )
        atomic_write(path, buffer.getvalue())


def read_text_embeddings(path: str | Path) -> TextEmbeddings:
    """The text embeddings of a file; nothing in it is executed.

    Args:
        path: of an .npz file with the arrays `names` (C,) str, `classes` (C, E) float, `background_names`
            (B,) str and `background` (B, E) float.

    Raises:
        ConfigError: no such file, damaged, or with other arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no file of text embeddings at {path}; check the path, or {MAKE}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names, classes, background_names, background = (arrays[name] for name in ARRAYS)
    except BROKEN as error:
        raise ConfigError(
            f"{path} is no file of text embeddings ({reason(error)}): expected an .npz file with the arrays "
            f"{', '.join(ARRAYS)}; {MAKE}"
        ) from error
    if not all(np.issubdtype(rows.dtype, np.floating) for rows in (classes, background)):
        raise ConfigError(f"{path}: expected embeddings of floats, got {classes.dtype}, {background.dtype}")
    try:
        return TextEmbeddings(
            tuple(map(str, np.atleast_1d(names))),
            torch.from_numpy(classes.astype(np.float32)),
            tuple(map(str, np.atleast_1d(background_names))),
            torch.from_numpy(background.astype(np.float32)),
        )
    except DataError as error:
        raise ConfigError(f"{path}: {error}; {MAKE}") from error
