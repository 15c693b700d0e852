"""Exports a segmenter with `torch.export`, to run without ribseg, and verifies the result."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ribseg.errors import RibsegError
from ribseg.files import atomic_file
from ribseg.models.load import Segmenter

SMALLEST, LARGEST = 32, 4096  # sides of the program's input images
EXAMPLE = (2, 3, 96, 128)
CHECKED = ((1, 3, 96, 128), (3, 3, 64, 160))
TOLERANCE = 1e-4


class PixelProbabilities(nn.Module):
    """The exported network: from pixels to label probabilities.

    Args:
        segmenter: provides model, mean and std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.model = segmenter.model
        self.register_buffer("mean", torch.tensor(segmenter.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(segmenter.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32 RGB in [0, 1] -> (N, C+1, H, W) probabilities, at one scale."""
        logits = self.model((images - self.mean) / self.std)
        large = F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
        return large.softmax(1)


def export_program(segmenter: Segmenter) -> ExportedProgram:
    """The exported program, for any batch size and for sides of 32 to 4,096 pixels in multiples of 32.

    Raises:
        RibsegError: its output differs from the model's.
    """
    module = PixelProbabilities(segmenter).cpu().eval()
    rows, columns = (Dim(name, min=1, max=LARGEST // SMALLEST) for name in ("rows", "columns"))
    shapes = ({0: Dim("batch", min=1, max=1024), 2: SMALLEST * rows, 3: SMALLEST * columns},)
    with torch.no_grad():
        program = torch.export.export(module, (torch.zeros(EXAMPLE),), dynamic_shapes=shapes)
        run, generator = program.module(), torch.Generator().manual_seed(0)
        trials = [torch.rand(shape, generator=generator) for shape in CHECKED]
        difference = max(float((module(images) - run(images)).abs().max()) for images in trials)
    if difference > TOLERANCE:
        raise RibsegError(
            f"the exported program differs from the model by {difference:g} in a probability, expected at "
            f"most {TOLERANCE:g}; skip it with export.program=false"
        )
    return program


def save_program(path: str | Path, program: ExportedProgram) -> None:
    """Writes a program atomically; `torch.export.load(path).module()` loads it."""
    with atomic_file(path) as file:
        torch.export.save(program, file)
