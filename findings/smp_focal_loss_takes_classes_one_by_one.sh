#!/bin/sh
# segmentation-models-pytorch 0.6.0, FocalLoss("multiclass"): not the focal loss of the softmax, as its mode and its
# neighbours (DiceLoss, LovaszLoss of the same mode) have it, but the sum of the binary ones of each class, by sigmoid.
# A constant added to all logits of a pixel, which leaves the softmax as it is, changes the loss; logits that are right
# in every pixel, with a probability of 1 - 4e-8, have a loss far from 0, which cross entropy, dice and Lovasz have there.
# Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q "torch==2.14.1" "torchvision==0.29.1" "timm==1.0.31" "numpy==2.4.6" \
    "segmentation-models-pytorch==0.6.0"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, LovaszLoss
from torch.nn.functional import cross_entropy, one_hot

mask = torch.zeros(2, 32, 32, dtype=torch.long)
mask[:, :16] = 8
logits = 20.0 * one_hot(mask, 21).permute(0, 3, 1, 2)
losses = {"cross entropy": cross_entropy, "dice": DiceLoss("multiclass"), "Lovasz": LovaszLoss("multiclass")}
for name, loss in (losses | {"focal": FocalLoss("multiclass")}).items():
    right, shifted = float(loss(logits, mask)), float(loss(logits + 5, mask))
    print(f"{name}: {right:.4f}, with 5 added to all logits {shifted:.4f}")
    if name == "focal":
        assert right > 0.1
        assert shifted > 10 * right
    else:
        assert max(right, shifted) < 1e-4
PYTHON
