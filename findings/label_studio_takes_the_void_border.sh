#!/bin/sh
# label-studio-sdk 2.1.2, image2annotation: makes a brush annotation from a mask by gray values above 128. Of a mask in
# VOC's colours, where one class is drawn and its border is 255, the annotation is the border and not the class: of VOC's 20
# classes three have colours as light as that, and void has. With gray ids (0, 8, 255) it is the same.
# decode_from_annotation finds nothing in what image2annotation made, without an error.
# Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q "label-studio-sdk==2.1.2" "pillow==13.0.0" "numpy==2.2.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from label_studio_sdk.converter.brush import decode_from_annotation, decode_rle, image2annotation
from PIL import Image

VOC = {0: (0, 0, 0), 8: (64, 0, 0), 255: (224, 224, 192)}  # background, cat, void
ids = np.zeros((60, 80), np.uint8)
ids[10:50, 10:70] = 255
ids[14:46, 14:66] = 8
gray = Image.fromarray(ids)
colours = gray.copy()
palette = np.zeros((256, 3), np.uint8)
for number, colour in VOC.items():
    palette[number] = colour
colours.putpalette(palette.ravel().tolist())
for name, image in (("colours", colours), ("gray", gray)):
    image.save(f"{name}.png")
    made = image2annotation(f"{name}.png", "cat", "tag", "image")["result"]
    brushed = decode_rle(made[0]["value"]["rle"]).reshape(*ids.shape, 4)[..., 3] > 0
    print(name, {number: float(brushed[ids == number].mean()) for number in VOC})
    assert np.array_equal(brushed, ids == 255)
    assert decode_from_annotation("tag", made) == {}
PYTHON
