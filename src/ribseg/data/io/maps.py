"""Localization maps of an image, and their files `<image id>.npz`."""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ribseg.data.io.images import as_image
from ribseg.errors import DAMAGED, DataError, reason
from ribseg.files import atomic_write
from ribseg.functional.cam import argmax_labels
from ribseg.functional.refined import Refinement, refined_labels
from ribseg.types import STRIDE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Array in a file -> its shape, K for that of classes, and the beginning of its type.
ARRAYS: dict[str, tuple[tuple[str | int, ...], str]] = {
    "classes": (("K",), "i"),
    "strided": (("K", "height", "width"), "f"),
    "full": (("K", "height", "width"), "f"),
    "size": ((2,), "i"),
    "names": (("K",), "U"),
    "steps": (("steps", "K", "height", "width"), "u1"),
}
KINDS = {"i": "integers", "f": "floats", "U": "texts", "u1": "uint8"}
LARGEST_LABEL = 254  # in an 8-bit mask; 255 is "ignore"
LARGEST = 2**31  # bytes of one file's arrays, unpacked: 20 classes of a photograph of 50 megapixels
# In Python 3.11.4 to 3.11.7 parsing literals, as numpy does for headers, is not thread-safe.
HEADERS = Lock()


@dataclass(
    eq=False, repr=False
)  # not frozen: Trainer.predict moves what it returns to the CPU field by field
class LocalizationMaps:
    """Normalised localization maps of one image.

    Attributes:
        classes: (K,) int64, indices of the present classes (0 = first class, no background), ascending.
        strided: (K, ceil(H/4), ceil(W/4)) float in [0, 1], for the random walk.
        full: (K, H, W) float in [0, 1], for evaluation and CRF; None if not kept.
        size: (H, W) of the image in pixels, if known.
        names: of the K classes, if known.
        num_classes: C of the classifier, if known.
        steps: (S, K, h, w) float in [0, 1], small maps after step 0, 1, .. of a method that has steps, for
            figures; None if not kept.
    """

    classes: Tensor
    strided: Tensor
    full: Tensor | None
    size: tuple[int, int] | None = None
    names: tuple[str, ...] = ()
    num_classes: int | None = None
    steps: Tensor | None = None

    def __repr__(self) -> str:
        """Classes and size; the values would fill pages."""
        names = self.names or tuple(map(str, self.classes.tolist()))
        size = "unknown size" if self.size is None else "{} x {} pixels".format(*self.size)
        return f"{type(self).__name__}({', '.join(names) or 'no class'}; {size})"

    @property
    def labels(self) -> Tensor:
        """The label of each class in `mask`: (K,) int64.

        c + 1 for class c; 1 to K if the classifier has more classes than an 8-bit mask has labels (254).
        """
        most = max(self.num_classes or 0, int(self.classes.max()) + 1 if len(self.classes) else 0)
        return self.classes + 1 if most <= LARGEST_LABEL else torch.arange(1, len(self.classes) + 1)

    def mask(self, threshold: float) -> npt.NDArray[np.uint8]:
        """The mask: (H, W) uint8, per pixel the label of the strongest class above the threshold, else 0.

        Args:
            threshold: the background score, in [0, 1].

        Raises:
            DataError: the maps were kept at stride 4 only.
        """
        if self.full is None:
            raise DataError("these maps have no full size (maps.full=false); a mask needs it")
        return argmax_labels(self.full, self.labels - 1, threshold).to(torch.uint8).cpu().numpy()

    def refined(
        self,
        image: Any,
        refinement: Refinement = "crf",
        threshold: float = 0.4,
        segments: Tensor | None = None,
    ) -> npt.NDArray[np.uint8]:
        """The mask at a threshold, refined to the edges of the image: (H, W) uint8, labels as of `mask`.

        Args:
            image: of any kind that `ribseg.data.io.images.as_image` takes.
            refinement: see `ribseg.functional.refined_labels`.
            threshold: the background score, in [0, 1].
            segments: of the image, for "segments".

        Raises:
            ConfigError: see `refined_labels`.
            DataError: the image is of another size, or the maps were kept at stride 4 only.
        """
        pixels = as_image(image)
        if self.full is None or tuple(self.full.shape[1:]) != pixels.shape[:2]:
            found = "maps at stride 4 alone" if self.full is None else f"maps of {tuple(self.full.shape[1:])}"
            raise DataError(f"expected maps of the image's size {pixels.shape[:2]}, found {found}")
        labels = refined_labels(pixels, self.full.cpu().float(), threshold, refinement, segments)
        ids = torch.cat([self.labels.new_zeros(1), self.labels]).cpu()
        return ids[labels].to(torch.uint8).numpy()

    def plot(self, image: Any, threshold: float | None = None) -> "Figure":
        """A matplotlib figure of the image, and each map over it.

        Args:
            image: of any kind that `ribseg.data.io.images.as_image` takes.
            threshold: of the mask whose outline is drawn; None for none.
        """
        from ribseg.plot import localization_figure

        return localization_figure(image, self, threshold)

    def save(self, path: str | Path) -> None:
        """Writes an .npz file for `ribseg.data.load_maps`; see `save_maps`."""
        save_maps(path, self)


def save_maps(path: str | Path, maps: LocalizationMaps) -> None:
    """Writes localization maps atomically; the same maps give the same bytes.

    The compressed archive has `classes` (K,) int64, `strided` (K, h, w) float16 and, if given, `full`
    (K, H, W) float16, `size` (2,) int64, `names` (K,) str and `steps` (S, K, h', w') uint8, which are
    multiples of 1/255. Half precision changes values in [0, 1] by at
    most 0.00025; a sweep over thresholds has steps of 0.01. Compression reduces full maps of photographs to
    0.7, and maps at stride 4 to 0.8 of their size.

    Raises:
        DataError: if shapes do not match, classes are not ascending, a value is not finite in half precision,
            or the arrays need more than 2 GiB.
        RibsegError: if the folder cannot be written to.
    """
    arrays = {"classes": _numpy(maps.classes, np.int64), "strided": _numpy(maps.strided, np.float16)}
    if maps.full is not None:
        arrays["full"] = _numpy(maps.full, np.float16)
    if maps.size is not None:
        arrays["size"] = np.asarray(maps.size, dtype=np.int64)
    if maps.names:
        arrays["names"] = np.asarray(maps.names, dtype=np.str_)
    if maps.steps is not None:
        arrays["steps"] = _numpy((255 * maps.steps).round().clamp(0, 255), np.uint8)
    problem = _problem(arrays)
    if sum(array.nbytes for array in arrays.values()) > LARGEST:
        problem = f"they need more than {LARGEST >> 30} GiB; keep maps at stride 4 only (maps.full=false)"
    if problem:
        raise DataError(f"localization maps for {path} are not written: {problem}.")
    atomic_write(path, _packed(arrays))


def load_maps(path: str | Path) -> LocalizationMaps:
    """Reads a file of `save_maps`; the maps are float32 on the CPU.

    Raises:
        DataError: if the file is missing, broken, has other content, or unpacks to more than 2 GiB.
    """
    try:
        arrays, others = _read(Path(path))
    except FileNotFoundError as error:
        raise DataError(f"{path} is absent. Run the stage that makes these maps again.") from error
    except DAMAGED as error:
        raise DataError(f"{path} cannot be read: {reason(error)}. Delete it, run its stage again.") from error
    problem = _problem(arrays, others)
    if problem:
        raise DataError(f"{path} holds no localization maps: {problem}. Delete it and run its stage again.")
    size = tuple(arrays["size"].tolist()) if "size" in arrays else None
    full = torch.from_numpy(arrays["full"]) if "full" in arrays else None
    names = tuple(map(str, arrays["names"])) if "names" in arrays else ()
    classes, strided = torch.from_numpy(arrays["classes"]), torch.from_numpy(arrays["strided"])
    steps = torch.from_numpy(arrays["steps"]).float() / 255 if "steps" in arrays else None
    return LocalizationMaps(classes, strided, full, size, names, steps=steps)


def _read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of maps, as float32 and int64, and the names of all arrays in the file."""
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        wanted = {name: members[name] for name in ARRAYS if name in members}
        if sum(entry.file_size for entry in wanted.values()) > LARGEST:
            raise ValueError(f"it unpacks to more than {LARGEST >> 30} GiB")
        arrays = {name: _array(archive.read(entry)) for name, entry in wanted.items()}
    return arrays, sorted(members)


def _array(data: bytes) -> np.ndarray:
    """The array in an .npy file, in the machine's byte order."""
    with HEADERS:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    with np.errstate(over="ignore"):
        return array.astype({"f": np.float32, "i": np.int64}.get(array.dtype.kind, array.dtype), order="C")


def _packed(arrays: dict[str, np.ndarray]) -> bytes:
    """An archive as of `np.savez_compressed`, at zlib's fastest level: as small, twice as fast."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            # The time stamps are 1980-01-01, so the bytes depend only on the values.
            entry = zipfile.ZipInfo(f"{name}.npy")
            archive.writestr(entry, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=1)
    return packed.getvalue()


def _numpy(tensor: Tensor, dtype: type) -> np.ndarray:
    with np.errstate(over="ignore"):  # _problem reports the infinity after an overflow
        return tensor.detach().cpu().numpy().astype(dtype)


def _problem(arrays: dict[str, np.ndarray], found: list[str] | None = None) -> str:
    """The problem with the arrays of a map file; "" if there is none."""
    if not {"classes", "strided"} <= set(arrays):
        return f"expected `classes` and `strided`, found {found}"
    classes = arrays["classes"]
    for name, array in arrays.items():
        sides, kind = ARRAYS[name]
        shape = tuple(classes.size if side == "K" else side for side in sides)
        fits = len(shape) == array.ndim and all(
            found == side for found, side in zip(array.shape, shape, strict=True) if isinstance(side, int)
        )
        if not fits or not array.dtype.str[1:].startswith(kind):
            text = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
            return f"expected `{name}` {text} of {KINDS[kind]}, found {array.dtype} {array.shape}"
        if kind == "f" and not np.isfinite(array).all():
            return f"`{name}` holds NaN or infinity"
    if (classes < 0).any() or (np.diff(classes) <= 0).any():
        return f"expected `classes` ascending from 0 on, found {classes[:8].tolist()}"
    if "size" not in arrays:
        return ""
    size = arrays["size"].tolist()
    expected = {"strided": [-(-side // STRIDE) for side in size], "full": size}
    shapes = {name: arrays[name].shape for name in expected if name in arrays}
    if min(size) < 1 or any(list(shape[1:]) != expected[name] for name, shape in shapes.items()):
        return f"the maps {shapes} do not belong to an image of {size} pixels (height, width)"
    return ""


def map_path(folder: str | Path, image_id: str) -> Path:
    """The file of an image's maps in a stage's folder."""
    return Path(folder) / "maps" / f"{image_id}.npz"


def read_records(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Image id -> record, from all processes; incomplete last lines of killed processes are ignored."""
    records: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(folder).glob("records-*.jsonl")):
        for line in path.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # empty or incomplete: then the image has no map file either and is done again
            records[record["id"]] = record
    return records
