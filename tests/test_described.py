"""Files that describe their network: what was saved comes back, from the file alone."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ribseg
from ribseg.data.voc import VOC_CLASSES
from ribseg.errors import ConfigError
from ribseg.models import Segmenter, load_into
from ribseg.models.weights_file import read_file

SMALL = {"backbone": "resnet10t", "backbone_kwargs": {"channels": (8, 8, 12, 16)}}


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return ribseg.Classifier(
        num_classes=2, output_stride=8, freeze="none", classes=["cat", "dog"], std=(0.5, 0.4, 0.3), **SMALL
    ).eval()


def test_a_classifier_comes_back_from_its_file(tmp_path, classifier):
    classifier.save(tmp_path / "c.safetensors")
    loaded = ribseg.load(tmp_path / "c.safetensors")
    assert isinstance(loaded, ribseg.Classifier)
    assert not loaded.training
    assert (loaded.classes, loaded.freeze) == (("cat", "dog"), "none")
    assert loaded.mean == (0.485, 0.456, 0.406)  # timm's of this backbone
    assert loaded.std == (0.5, 0.4, 0.3)
    image = torch.randn(1, 3, 40, 56)
    assert torch.equal(loaded.class_maps(image), classifier.class_maps(image))
    first = (tmp_path / "c.safetensors").read_bytes()
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == first


def test_the_file_is_plain_safetensors_that_every_reader_takes(tmp_path, classifier):
    classifier.save(tmp_path / "c.safetensors")
    assert set(load_file(tmp_path / "c.safetensors")) == set(classifier.state_dict())
    other = ribseg.Classifier(num_classes=2, output_stride=8, freeze="none", **SMALL).eval()
    assert load_into(other, tmp_path / "c.safetensors") == []
    assert torch.equal(other.weight, classifier.weight)


def test_a_segmenter_comes_back_from_its_file(tmp_path):
    palette = np.arange(768, dtype=np.uint8).reshape(256, 3)
    model = ribseg.DeepLabV2(3, dilations=(1, 2), **SMALL)
    Segmenter(model, ("a", "b"), palette=palette, inference={"flip": False}).save(tmp_path / "s.safetensors")
    loaded = ribseg.load(tmp_path / "s.safetensors")
    assert isinstance(loaded, Segmenter)
    assert (loaded.classes, loaded.inference) == (("a", "b"), {"flip": False})
    assert (loaded.palette == palette).all()
    mask = ribseg.predict(np.zeros((33, 40, 3), np.uint8), tmp_path / "s.safetensors", device="cpu")
    assert mask.shape == (33, 40)


def test_a_released_classifier_gets_the_names_of_voc(tmp_path):
    network = ribseg.Classifier("resnet50.tv_in1k", 20)
    layers = {"1": "layer3", "2": "layer4"}
    state = {}
    for key, value in network.state_dict().items():
        if key.startswith("backbone."):
            _, _, stage, rest = key.split(".", 3)
            assert rest.startswith(layers.get(stage, ""))
            state[f"resnet50.{rest}"] = value
    state["classifier.weight"] = network.weight.detach()
    torch.save(state, tmp_path / "res50_cam.pth")
    loaded = ribseg.load(tmp_path / "res50_cam.pth")
    assert loaded.classes == VOC_CLASSES
    assert torch.equal(loaded.weight, network.weight)


def test_weights_alone_say_how_to_use_them(tmp_path, classifier):
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    with pytest.raises(ConfigError, match=r"weights alone.*load_into.*classifier\.checkpoint=PATH"):
        ribseg.load(tmp_path / "classifier.pt")
    save_file(classifier.state_dict(), tmp_path / "other.safetensors")
    assert "kind" not in read_file(tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="weights alone"):
        ribseg.load(tmp_path / "other.safetensors")


def rewritten(path, **changes):
    """The file with another header."""
    description = read_file(path)
    state = description.pop("state_dict")
    save_file(state, path, metadata={"ribseg": json.dumps(description | changes)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": 2}, "later version"),
        ({"architecture": "os.system"}, "unknown architecture 'os.system'"),
        ({"settings": {"num_classes": 3, **SMALL}}, "do not fit|does not fit|knows|expected"),
        ({"settings": {"nonsense": 1}}, "do not fit their own settings"),
        ({"settings": None}, "do not fit their own settings"),
        ({"mean": [1, 2]}, "do not fit their own settings"),
        ({"classes": ["one"]}, "expected num_classes=2 names|2 names"),
        ({"kind": "another"}, "weights alone"),
    ],
)
def test_headers_that_cannot_be_used_are_refused(tmp_path, classifier, changes, message):
    path = tmp_path / "c.safetensors"
    classifier.save(path)
    rewritten(path, **changes)
    with pytest.raises(ConfigError, match=message):
        ribseg.load(path)


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 100])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        ribseg.load(tmp_path / "c.safetensors")
    with pytest.raises(ConfigError, match="no file of weights at"):
        ribseg.load(tmp_path / "absent.safetensors")


def test_a_truncated_file_is_refused(tmp_path, classifier):
    path = tmp_path / "c.safetensors"
    classifier.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        ribseg.load(path)


def test_other_endings_and_wrong_names_are_refused(tmp_path, classifier):
    with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
        classifier.save(tmp_path / "c.pt")
    with pytest.raises(ConfigError, match="2 names"):
        ribseg.Classifier("resnet10t", num_classes=2, classes=["one"])
