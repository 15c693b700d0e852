"""A safe reader of `.npy` files with a pickled dictionary, as PSA, IRN and their successors write them.

A pickle can call any function that it names. This reader replaces the functions that rebuild arrays and
tensors by its own, and refuses every other name before anything is called. The replacements check their
arguments, because numpy's own functions would accept a forged element type.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ribseg.errors import DAMAGED, DataError, reason

NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")


class _Dtype:
    """Replaces `numpy.dtype`: plain numbers, and the object type of the dictionary around them."""

    def __init__(self, name: str, *_: object) -> None:
        self.holds_objects = name in ("O", "O8")
        if not (self.holds_objects or NUMBERS.fullmatch(name)):
            raise pickle.UnpicklingError(f"arrays of the type {name!r} are not read; expected plain numbers")
        self.name, self.order = name, "="

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = state[1]
        if self.order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"{self.order!r} is no byte order")


class _Array:
    """Replaces `numpy.ndarray`: created empty, then filled."""

    value: Any = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, kind, columns_first, data = state
        if kind.holds_objects:
            if shape != () or type(data) is not list or len(data) != 1:
                raise pickle.UnpicklingError(f"expected one dictionary, found objects of shape {shape}")
            self.value = data[0]
            return
        flat = np.frombuffer(data, np.dtype(kind.order + kind.name)) if data else np.zeros(0, kind.name)
        self.value = flat.reshape(shape, order="F" if columns_first else "C")


def _storage(data: bytes) -> Tensor:
    """Replaces `torch.storage._load_from_bytes`, which unpickles without restrictions."""
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {named[1]}" if named else "is damaged"
        raise pickle.UnpicklingError(f"a tensor in it {what}, which is refused") from error
    return torch.empty(0, dtype=storage.dtype).set_(storage)


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    """Replaces `torch._utils._rebuild_tensor_v2`; torch checks the bounds of the view."""
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _scalar(kind: _Dtype, data: bytes) -> int | float | bool:
    """Replaces numpy's `scalar`, which rebuilds the image ids in dictionaries of labels."""
    if kind.holds_objects:
        raise pickle.UnpicklingError("a single object is not read; expected a number")
    value: int | float | bool = np.frombuffer(data, np.dtype(kind.order + kind.name)).reshape(()).item()
    return value


def _latin1(text: str, encoding: str) -> bytes:
    """Replaces `_codecs.encode`, with which pickles of protocol 2 rebuild bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not read")
    return text.encode(encoding)


def _no_bytes() -> bytes:
    """Replaces `bytes`, with which pickles of protocol 2 rebuild empty bytes."""
    return b""


STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("collections", "OrderedDict"): OrderedDict,  # a tensor's hooks, empty
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
}


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO, path: str | Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """The replacement for a name; refuses all other names."""
        if (module, name) not in STAND_INS:
            raise DataError(
                f"{self.path} asks for {module}.{name} while it is read, which is refused: maps and labels "
                "need only arrays and CPU tensors. If the file is your own, save it again as a dictionary of "
                "numpy arrays; if it is not, do not open it with numpy or torch."
            )
        return STAND_INS[module, name]


def read_pickled_arrays(path: str | Path) -> dict[str | int, np.ndarray]:
    """Name or number -> array, from a dictionary that `np.save` has pickled.

    Tensors and lists of numbers become arrays.

    Raises:
        DataError: if the file is missing, broken, or contains anything but arrays and tensors.
    """
    try:
        with Path(path).open("rb") as file:
            _skip_header(file)
            content = _Reader(file, path).load()
        items = content.value.items()
        return {name if isinstance(name, int) else str(name): _plain(value) for name, value in items}
    except DataError:
        raise
    except DAMAGED as error:
        raise DataError(
            f"{path} cannot be read: {reason(error)}. Expected a dictionary of arrays as np.save writes it; "
            "make the file again."
        ) from error


def _skip_header(file: BinaryIO) -> None:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype != np.dtype(object) or shape != ():
        raise ValueError(f"it holds an array of {dtype} {shape}, not a dictionary")


def _plain(value: Any) -> np.ndarray:
    if isinstance(value, _Array):
        return np.asarray(value.value)
    return value.numpy() if isinstance(value, Tensor) else np.asarray(value)
