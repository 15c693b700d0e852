#!/bin/sh
# torch.onnx (torch 2.14.1, onnxscript 0.7.2): a size rounded up to a multiple of 32 as -(-size // 32) * 32, the usual
# way to write it in Python, is exported with ONNX's Div, which rounds towards zero where // rounds down. The program
# is written without a word, and at sizes that are no multiples it crops an image where the model pads it: 65 columns
# become 64, not 96. Of positive numbers, (size + 31) // 32 * 32, model and program agree.
# Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q "torch==2.14.1" "numpy==2.4.6" "onnx==1.23.2" "onnxscript==0.7.2" \
    "onnxruntime==1.32.0"
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch.export import Dim

warnings.simplefilter("ignore")
WIDTHS = (64, 65, 81, 96, 127)


class RoundedUp(torch.nn.Module):
    """Pads columns to a multiple of 32."""

    def __init__(self, negative):
        super().__init__()
        self.negative = negative

    def forward(self, images):
        width = images.shape[-1]
        target = -(-width // 32) * 32 if self.negative else (width + 31) // 32 * 32
        return F.pad(images, (0, target - width))


def widths(negative):
    """Widths that the model gives, and its ONNX program."""
    model = RoundedUp(negative)
    sizes = ({1: Dim("width", min=33, max=4096)},)
    program = torch.onnx.export(model, (torch.zeros(1, 128),), dynamo=True, dynamic_shapes=sizes, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    name = session.get_inputs()[0].name
    own = [model(torch.zeros(1, width)).shape[1] for width in WIDTHS]
    return own, [session.run(None, {name: np.zeros((1, width), np.float32)})[0].shape[1] for width in WIDTHS]


for negative in (True, False):
    own, exported = widths(negative)
    print(f"negative: {negative}, widths {WIDTHS}, model: {own}, ONNX: {exported}")
    assert own == [64, 96, 96, 96, 128], own
    assert exported == ([64, 64, 64, 96, 96] if negative else own), exported
PYTHON
