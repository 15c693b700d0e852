"""A segmenter as a program of others: what goes in is uint8, of any size, and equal to the model."""

import io
import json
from inspect import signature
from itertools import product

import pytest
import torch
from timm.layers.padding import get_same_padding

import ribseg
from ribseg.cli import main
from ribseg.errors import ConfigError, RibsegError
from ribseg.models.load import Segmenter
from ribseg.models.program import DEFERRED, Portable, export_segmenter, same_padding
from ribseg.models.smp import SMPSegmenter

NARROW = {"channels": (8, 8, 12, 16)}
IMAGES = torch.randint(0, 256, (2, 70, 91, 3), dtype=torch.uint8)


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    model = ribseg.DeepLabV2(3, "resnet10t", backbone_kwargs=NARROW).eval()
    return Segmenter(model, ("cat", "dog"), mean=(0.4, 0.5, 0.6))


def need(form):
    """Skips a test of a form that cannot be written here."""
    if form != "torchscript" and DEFERRED not in signature(torch.export.export).parameters:
        pytest.skip("needs torch >= 2.9")
    for name in ("onnx", "onnxruntime", "onnxscript") if form == "onnx" else ():
        pytest.importorskip(name, reason="pip install 'ribseg[onnx]'")


def run_of(form, data):
    """The program as a user without ribseg runs it, and its description."""
    if form == "torchscript":
        files = {"ribseg.json": ""}
        return torch.jit.load(io.BytesIO(data), _extra_files=files), files["ribseg.json"]
    if form == "pt2":
        files = {"ribseg.json": ""}
        return torch.export.load(io.BytesIO(data), extra_files=files).module(), files["ribseg.json"]
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map["ribseg"]
    return lambda images: map(torch.from_numpy, session.run(None, {"images": images.numpy()})), about


@pytest.mark.parametrize("form", ["torchscript", "pt2", "onnx"])
@torch.no_grad()
def test_a_program_is_the_model_at_other_sizes_and_refuses_floats(form, segmenter):
    need(form)
    run, about = run_of(form, export_segmenter(segmenter, form))
    expected, ids = Portable(segmenter).eval()(IMAGES)
    probabilities, labels = run(IMAGES)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-4)
    assert (labels == ids).float().mean() > 0.9999
    described = json.loads(about)
    assert described["classes"] == ["background", "cat", "dog"]
    assert described["palette"][1] == [128, 0, 0]
    assert "uint8 RGB" in described["input"]
    with pytest.raises(Exception, match=r"(?i)uint8|byte|type"):
        run(IMAGES.float() / 255)


@pytest.mark.parametrize("form", [pytest.param("pt2", marks=pytest.mark.slow), "onnx"])
@torch.no_grad()
def test_dilated_tensorflow_paddings_are_exported_for_any_size(form):
    need(form)
    torch.manual_seed(0)
    narrow = {"decoder_channels": 8}
    model = SMPSegmenter(3, "deeplabv3plus", "tu-tf_mobilenetv3_small_minimal_100", kwargs=narrow).eval()
    given = Segmenter(model, ("cat", "dog"))
    run, _ = run_of(form, export_segmenter(given, form))
    torch.testing.assert_close(next(iter(run(IMAGES))), Portable(given)(IMAGES)[0], rtol=0, atol=1e-4)


def test_padding_in_whole_numbers_is_timms():
    for side, kernel, stride, dilation in product(range(1, 40), (1, 2, 3, 5), (1, 2, 3, 4), (1, 2)):
        expected = get_same_padding(side, kernel, stride, dilation)
        assert same_padding(side, kernel, stride, dilation) == expected


def test_a_program_gives_what_predict_gives(segmenter):
    image = IMAGES[0].numpy()
    _, ids = Portable(segmenter).eval()(IMAGES[:1])
    expected = ribseg.predict(image, segmenter, scales=(1.0,), flip=False, crf=None)
    assert (ids[0].numpy() == expected).mean() > 0.9999


class Unfit(torch.nn.Module):
    """A network whose way depends on the values of its input, which no exporter can follow."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)

    def forward(self, images):
        """Logits."""
        return self.layer(images) if images.sum() > 0 else images


def test_an_old_torch_is_named(segmenter, monkeypatch):
    monkeypatch.setattr(torch.export, "export", lambda module, args: None)
    with pytest.raises(ConfigError, match=r"need torch >= 2.9, found .*; take torchscript"):
        export_segmenter(segmenter, "pt2")


def test_what_cannot_be_exported_is_named(segmenter):
    need("pt2")
    with pytest.raises(RibsegError, match="Unfit cannot be exported as pt2"):
        export_segmenter(Segmenter(Unfit(), ("a", "b")), "pt2")
    with pytest.raises(ConfigError, match=r"to: expected onnx \| pt2 \| torchscript"):
        export_segmenter(segmenter, "tflite")


def test_the_command(segmenter, tmp_path, capsys):
    segmenter.save(tmp_path / "segmenter.safetensors")
    words = ["export", str(tmp_path / "segmenter.safetensors"), str(tmp_path / "s.ts"), "--to", "torchscript"]
    main(words)
    assert "takes uint8 RGB (N, H, W, 3)" in capsys.readouterr().out
    run, _ = run_of("torchscript", (tmp_path / "s.ts").read_bytes())
    assert run(IMAGES)[0].shape == (2, 3, 70, 91)
    with pytest.raises(SystemExit, match="exists already"):
        main(words)
