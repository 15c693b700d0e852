"""Exports a segmenter to run without ribseg, as ONNX, torch.export or TorchScript, and verifies the result.

The program takes photographs as they are: uint8 RGB (N, H, W, 3), of any size from 33 pixels on; it
normalises them itself. It gives probabilities (N, C+1, H, W) and ids (N, H, W), at one scale, without mirror
image and CRF.
"""

import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from ribseg import __version__
from ribseg.checks import check_choice
from ribseg.errors import ConfigError, RibsegError, reason
from ribseg.files import atomic_write
from ribseg.models.backbone import PAD_TO
from ribseg.models.load import Segmenter

# Sides of the program's input images: of a single row of features torch.export makes a case of its own.
SMALLEST, LARGEST = PAD_TO + 1, 4096
CHECKED = ((96, 128), (65, 81), (33, 200), (128, 128), (233, 150))  # heights and widths
EXAMPLE = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
TOLERANCE, EQUAL = 1e-4, 0.9999  # of probabilities; share of equal ids
DEFERRED = "prefer_deferred_runtime_asserts_over_guards"  # argument of torch.export.export
ABOUT = "ribseg"  # key, or file, of the description in a program
Runner = Callable[[Tensor], tuple[Tensor, Tensor]]
Written = tuple[bytes, Runner]  # program, and what runs it


class Portable(nn.Module):
    """The exported network: from photographs to probabilities and ids.

    Args:
        segmenter: provides model, mean and std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.model = segmenter.model
        self.register_buffer("mean", 255 * torch.tensor(segmenter.mean)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(segmenter.std)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, 3) uint8 RGB -> (N, C+1, H, W) float32 probabilities, and (N, H, W) uint8 ids."""
        pixels = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits = self.model(pixels)
        large = F.interpolate(logits, pixels.shape[-2:], mode="bilinear", align_corners=False)
        probabilities = large.softmax(1)
        return probabilities, probabilities.argmax(1).to(torch.uint8)


def export_segmenter(segmenter: Segmenter, to: str) -> bytes:
    """The bytes of a program, which has been compared with the model on images of five sizes.

    Args:
        segmenter: on any device; it is left as it is.
        to: "onnx" (extra `onnx`), "pt2" of torch.export, or "torchscript".

    Raises:
        ConfigError: an unknown form, or torch is too old for it, or the packages for ONNX are not installed.
        RibsegError: the network cannot be exported, or the program differs from the model.
    """
    check_choice("to", to, tuple(WRITERS))
    device = next(segmenter.model.parameters()).device
    module = Portable(segmenter).cpu().eval()
    try:
        with torch.no_grad():
            data, run = WRITERS[to](module, description(segmenter))
            check_program(module, run)
    except RibsegError:
        raise
    except Exception as error:
        name = type(segmenter.model).__name__
        raise RibsegError(f"{name} cannot be exported as {to}: {reason(error)}") from error
    finally:
        segmenter.model.to(device)
    return data


def save_program(path: str | Path, segmenter: Segmenter, to: str) -> None:
    """Writes the program of `export_segmenter`, atomically."""
    atomic_write(path, export_segmenter(segmenter, to))


def description(segmenter: Segmenter) -> str:
    """JSON: class names, colours, and what goes in and comes out."""
    return json.dumps(
        {
            "classes": ["background", *segmenter.classes],
            "palette": segmenter.palette[: len(segmenter.classes) + 1].tolist(),
            "input": "images: uint8 RGB (N, H, W, 3)",
            "output": "probabilities: float32 (N, C+1, H, W); ids: uint8 (N, H, W)",
            "version": __version__,
        }
    )


def check_program(module: Portable, run: Runner) -> None:
    """Compares a program with the model on images of five sizes.

    Raises:
        RibsegError: probabilities or ids differ.
    """
    generator = torch.Generator().manual_seed(0)
    for height, width in CHECKED:
        images = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8, generator=generator)
        (expected, ids), (found, labels) = module(images), run(images)
        difference, equal = float((expected - found).abs().max()), float((ids == labels).float().mean())
        if difference > TOLERANCE or equal < EQUAL:
            raise RibsegError(
                f"the program differs from the model by {difference:g} in a probability at {height} x "
                f"{width} pixels, expected at most {TOLERANCE:g}; {equal:.2%} of the ids are equal"
            )


def exported(module: Portable) -> torch.export.ExportedProgram:
    """The program of torch.export, for images of any size from 33 pixels on.

    Raises:
        ConfigError: torch is too old.
    """
    if DEFERRED not in signature(torch.export.export).parameters:
        raise ConfigError(f"onnx and pt2 need torch >= 2.9, found {torch.__version__}; take torchscript")
    height, width = (Dim(name, min=SMALLEST, max=LARGEST) for name in ("height", "width"))
    sizes = ({0: Dim("batch", min=1, max=1024), 1: height, 2: width},)
    # Guards that a size might violate, as of paddings, are checked when it runs.
    with mock.patch("timm.layers.padding.get_same_padding", same_padding):
        return torch.export.export(
            module, (EXAMPLE,), dynamic_shapes=sizes, prefer_deferred_runtime_asserts_over_guards=True
        )


def same_padding(side: int, kernel_size: int, stride: int, dilation: int) -> int | torch.SymInt:
    """Number of pixels that TensorFlow's padding adds to a side, as timm has it, by whole numbers alone.

    timm divides by the stride and rounds; of the sizes after some such layers torch.export makes expressions
    that it does not simplify for minutes.

    >>> same_padding(65, kernel_size=3, stride=2, dilation=1)
    2
    """
    least = dilation * (kernel_size - 1) + 1 - stride
    padding = least + (stride - side % stride) % stride
    return padding if least >= 0 else torch.sym_max(padding, 0)


def _pt2(module: Portable, about: str) -> Written:
    data = io.BytesIO()
    torch.export.save(exported(module), data, extra_files={f"{ABOUT}.json": about})
    data.seek(0)
    return data.getvalue(), torch.export.load(data).module()


def _torchscript(module: Portable, about: str) -> Written:
    data = io.BytesIO()
    traced = torch.jit.trace(module, EXAMPLE, check_trace=False)
    torch.jit.save(torch.jit.script(Checked(traced)), data, _extra_files={f"{ABOUT}.json": about})
    data.seek(0)
    return data.getvalue(), torch.jit.load(data)


class Checked(nn.Module):
    """A traced program that refuses what is no uint8 photograph; a trace alone would take it.

    Args:
        traced: the program.
    """

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `Portable`."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.size(3) != 3:
            raise ValueError("expected uint8 RGB images (N, H, W, 3)")
        probabilities, ids = self.traced(images)
        return probabilities, ids


def _onnx(module: Portable, about: str) -> Written:
    absent = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if absent:
        raise ConfigError(f"ONNX needs the packages {', '.join(absent)}: pip install 'ribseg[onnx]'")
    import onnxruntime

    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["probabilities", "ids"]}
    program = torch.onnx.export(exported(module), dynamo=True, verbose=False, **names)
    assert program is not None
    proto = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = ABOUT, about
    data: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        found = session.run(None, {"images": images.numpy()})
        probabilities, ids = (torch.from_numpy(np.asarray(each)) for each in found)
        return probabilities, ids

    return data, run


WRITERS: dict[str, Callable[[Portable, str], Written]] = {
    "onnx": _onnx,
    "pt2": _pt2,
    "torchscript": _torchscript,
}
