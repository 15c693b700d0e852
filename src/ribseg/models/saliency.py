"""Saliency maps of photographs by published networks in ONNX (extra `saliency`)."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ribseg.checks import check_choice, check_number
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD
from ribseg.errors import ConfigError, reason
from ribseg.files import atomic_file

SLACK = 0.01  # of values outside [0, 1], as 8-bit networks have them
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Kind(NamedTuple):
    """How a network takes photographs, and what it gives.

    Attributes:
        side: of its square input, in pixels, if its file does not say it.
        mean: of the channels from 0 to 1.
        std: likewise.
        logits: whether it gives logits, not values from 0 to 1.
    """

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    logits: bool = False


KINDS = {
    "isnet": Kind(1024, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),  # Qin et al., ECCV 2022
    "u2net": Kind(320, IMAGENET_MEAN, IMAGENET_STD),  # Qin et al., 2020; U2-Netp, too
    "birefnet": Kind(1024, IMAGENET_MEAN, IMAGENET_STD, logits=True),  # Zheng et al., 2024
}


class SaliencyNetwork:
    """Makes a saliency map of a photograph: (H, W, 3) uint8 RGB -> (H, W) uint8, 255 is salient.

    Args:
        path: ONNX file with one image in, (1, 3, S, S), and the map as first output.
        kind: a name in `KINDS`.
        side: S, for a file that takes any; None for the file's, or the kind's.

    Raises:
        ConfigError: onnxruntime is not installed; the file cannot be read, or is no such network.

    Attributes:
        side: S.
    """

    def __init__(self, path: str | Path, kind: str = "isnet", side: int | None = None) -> None:
        check_choice("kind", kind, tuple(KINDS))
        if not Path(path).is_file():
            found = "a folder" if Path(path).is_dir() else "nothing"
            raise ConfigError(f"expected the ONNX file of a saliency network at {path}, found {found}")
        self.path, self.kind = Path(path), KINDS[kind]
        self.session: Any = None
        self.process = 0  # that opened the session
        own = self.opened().get_inputs()
        sides = _sides(own[0]) if len(own) == 1 else []
        if not sides:
            found = ", ".join(f"{each.name} {each.shape} {each.type}" for each in own)
            raise ConfigError(f"{path} takes {found}; expected one RGB image (1, 3, S, S) of floats")
        fixed = sides[0]
        self.side = next(each for each in (side, fixed, self.kind.side) if each is not None)
        check_number("side", self.side, low=1, whole=True)
        if fixed is not None and self.side != fixed:
            raise ConfigError(f"{path} takes images of {fixed} pixels alone, not of side={side}")
        self(np.zeros((8, 8, 3), np.uint8))
        self.session = None  # each process opens its own

    def opened(self) -> Any:
        """The session of this process; a copy of a session does not work in a copy of its process."""
        if self.session is not None and self.process == os.getpid():
            return self.session
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ConfigError("saliency networks need onnxruntime: pip install 'ribseg[saliency]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has errors of its own for each kind of damage
            raise ConfigError(
                f"{self.path} cannot be read as an ONNX network, is it whole? {reason(error)}"
            ) from error
        self.process = os.getpid()
        return self.session

    def __getstate__(self) -> dict[str, Any]:
        """For new processes, without the session."""
        return vars(self) | {"session": None}

    def __call__(self, image: np.ndarray) -> npt.NDArray[np.uint8]:
        """The map of an (H, W, 3) uint8 RGB image: (H, W) uint8.

        Raises:
            ConfigError: what the network gives is no saliency map.
        """
        session, photograph = self.opened(), Image.fromarray(image)
        small = photograph.resize((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, np.float32) / 255
        mean, std = (np.array(each, np.float32) for each in (self.kind.mean, self.kind.std))
        given = ((pixels - mean) / std).transpose(2, 0, 1)[None]
        (own,) = session.get_inputs()
        try:
            found = np.asarray(session.run(None, {own.name: given.astype(FLOATS[own.type])})[0])
        except Exception as error:  # as above
            raise ConfigError(f"{self.path} cannot be run on {given.shape}: {reason(error)}") from error
        if found.size != self.side**2:
            raise ConfigError(f"{self.path} gives {found.shape}; expected one map of {self.side}x{self.side}")
        scores = found.reshape(self.side, self.side).astype(np.float32)
        if self.kind.logits and scores.min() >= 0 and scores.max() <= 1:
            raise ConfigError(
                f"{self.path} gives values from 0 to 1, no logits: take isnet or u2net as its kind"
            )
        if self.kind.logits:
            scores = 1 / (1 + np.exp(-scores.clip(-30, 30)))
        if not (scores.min() >= -SLACK and scores.max() <= 1 + SLACK):  # false for NaN, too
            raise ConfigError(
                f"{self.path} gives values from {scores.min():.3g} to {scores.max():.3g}; expected a map "
                "from 0 to 1, or logits of a network like birefnet"
            )
        gray = Image.fromarray((255 * scores.clip(0, 1)).round().astype(np.uint8))
        return np.asarray(gray.resize(photograph.size, Image.Resampling.BILINEAR))


def _sides(own: Any) -> list[int | None]:
    """The sides of the images that an input takes, None for any; none if it is no input for an RGB image."""
    if own.type not in FLOATS or len(own.shape) != 4:
        return []
    batch, channels, *sides = (size if isinstance(size, int) else None for size in own.shape)
    return sides if batch in (1, None) and channels in (3, None) and sides[0] == sides[1] else []


def write_saliency(path: str | Path, scores: npt.NDArray[np.uint8]) -> None:
    """Writes an (H, W) uint8 saliency map as a gray PNG, atomically."""
    with atomic_file(path) as file:
        Image.fromarray(scores).save(file, "png", optimize=True)
