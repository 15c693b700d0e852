"""Segmenters: shapes, strides, what learns, and their files."""

import pytest
import torch
from torch import nn

from ribseg.errors import ConfigError
from ribseg.models import Classifier, DeepLabV2, Segmenter, SMPSegmenter, load_segmenter

SMALL = {"backbone": "resnet10t", "backbone_kwargs": {"channels": [8, 8, 12, 16], "stem_width": 8}}


def dilations_of(module):
    return {m.dilation[0] for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] == 3}


@pytest.mark.parametrize(("stride", "size"), [(8, 9), (16, 5)])
def test_output_stride(stride, size):
    model = DeepLabV2(4, output_stride=stride, **SMALL)
    assert model(torch.zeros(1, 3, 65, 65)).shape == (1, 4, size, size)


def test_the_published_network():
    model = DeepLabV2(21)
    assert model(torch.zeros(1, 3, 33, 41)).shape == (1, 21, 5, 6)
    assert dilations_of(model.backbone.stages[1]) == {1, 2}
    assert dilations_of(model.backbone.stages[2]) == {2, 4}
    assert sorted(branch.dilation[0] for branch in model.head.branches) == [6, 12, 18, 24]
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(44e6, rel=0.03)


def test_aspp_is_the_sum_of_its_branches():
    model = DeepLabV2(3, **SMALL)
    features = torch.randn(2, model.backbone.num_features, 7, 6)
    expected = sum(branch(features) for branch in model.head.branches)
    torch.testing.assert_close(model.head(features), expected)


def test_frozen_norm_stays_what_it_was():
    model = DeepLabV2(3, norm="frozen", **SMALL).train()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for group in model.parameter_groups() for p in group], lr=0.1)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert not any(name.rsplit(".", 1)[0] in norms for name in changed)


def test_trained_norm_learns():
    model = DeepLabV2(3, norm="train", **SMALL).train()
    before = model.backbone.stages[0][1].running_mean.clone()
    model(torch.randn(2, 3, 32, 32))
    assert not torch.equal(model.backbone.stages[0][1].running_mean, before)
    assert any(p is model.backbone.stages[0][1].weight for p in model.parameter_groups().backbone)


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_groups_hold_every_parameter_that_learns_once(norm):
    model = DeepLabV2(3, norm=norm, **SMALL)
    groups = model.parameter_groups()
    held = [id(p) for group in groups for p in group]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len(groups.head_weights) == len(groups.head_biases) == 4
    assert all(p.ndim == 1 for p in groups.head_biases)


@pytest.mark.parametrize(
    "settings", [{"num_classes": 1}, {"dilations": []}, {"dilations": [0]}, {"norm": "sync"}]
)
def test_settings_that_cannot_work(settings):
    with pytest.raises(ConfigError, match="expected"):
        DeepLabV2(**({"num_classes": 3} | SMALL | settings))


def demo_segmenter(model):
    classes = tuple(f"class_{index}" for index in range(model.num_classes - 1))
    return Segmenter(
        model, classes, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), inference={"scales": [1.0], "flip": True}
    )


def former_content(segmenter):
    """What versions before 0.1.0 wrote with torch.save."""
    return {
        "kind": "ribseg segmenter 1",
        "architecture": segmenter.model.architecture,
        "settings": segmenter.model.settings,
        "classes": list(segmenter.classes),
        "mean": list(segmenter.mean),
        "std": list(segmenter.std),
        "palette": torch.from_numpy(segmenter.palette.copy()),
        "inference": dict(segmenter.inference),
        "state_dict": segmenter.model.state_dict(),
    }


@pytest.mark.parametrize(("file", "former"), [("segmenter.safetensors", False), ("segmenter.pt", True)])
def test_a_file_describes_itself_and_executes_nothing(tmp_path, file, former):
    model = DeepLabV2(3, norm="train", **SMALL)
    model(torch.randn(2, 3, 40, 40))  # moves the statistics
    if former:
        torch.save(former_content(demo_segmenter(model)), tmp_path / file)
    else:
        demo_segmenter(model).save(tmp_path / file)
    loaded = load_segmenter(tmp_path / file)
    image = torch.randn(1, 3, 40, 40)
    assert torch.equal(loaded.model(image), model.eval()(image))
    assert not loaded.model.training
    assert loaded.classes == ("class_0", "class_1")
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert loaded.inference == {"scales": [1.0], "flip": True}
    assert loaded.palette[1].tolist() == [128, 0, 0]


def test_objects_in_a_file_are_refused(tmp_path):
    segmenter = Segmenter(DeepLabV2(3, **SMALL), ("a", "b"), inference={"crf": tmp_path})
    with pytest.raises(ConfigError, match="without executing"):
        segmenter.save(tmp_path / "s.safetensors")
    with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
        segmenter.save(tmp_path / "s.pt")
    with pytest.raises(ConfigError, match="Conv2d cannot be described"):
        Segmenter(nn.Conv2d(3, 2, 1), ("a",)).save(tmp_path / "s.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"junk", None, {"kind": "another"}])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "file.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ConfigError, match="segmenter"):
        load_segmenter(path)


def test_unknown_architectures_and_weights_that_do_not_fit(tmp_path):
    content = former_content(demo_segmenter(DeepLabV2(3, **SMALL)))
    torch.save(content | {"architecture": "other"}, tmp_path / "b.pt")
    with pytest.raises(ConfigError, match="unknown architecture 'other'"):
        load_segmenter(tmp_path / "b.pt")
    content["settings"]["num_classes"] = 4
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ConfigError, match="do not fit"):
        load_segmenter(tmp_path / "c.pt")


def test_wrong_types_at_every_place_of_a_segmenter(tmp_path):
    content = former_content(demo_segmenter(DeepLabV2(3, **SMALL)))
    odd = (None, -1, 10**30, float("nan"), "text", [], [1], {"a": 1}, torch.zeros(2), torch.zeros(256, 3))
    refused = 0
    for key in content:
        for value in odd:
            torch.save(content | {key: value}, tmp_path / "b.pt")
            try:
                load_segmenter(tmp_path / "b.pt")
            except ConfigError:  # anything else fails the test
                refused += 1
    assert refused > 60


@pytest.mark.parametrize(("name", "encoder"), [("deeplabv3plus", "resnet18"), ("segformer", "mit_b0")])
def test_segmenters_of_another_library(tmp_path, name, encoder):
    model = SMPSegmenter(3, name, encoder)
    assert model.eval()(torch.zeros(1, 3, 50, 70)).shape == (1, 3, 50, 70)
    held = [id(p) for group in model.parameter_groups() for p in group]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    demo_segmenter(model).save(tmp_path / "s.safetensors")
    image = torch.randn(1, 3, 32, 64)
    assert torch.equal(load_segmenter(tmp_path / "s.safetensors").model(image), model(image))


def test_encoder_weights_from_a_file_and_frozen_norm(tmp_path):
    first = SMPSegmenter(3, "fpn", "resnet18")
    torch.save(first.network.encoder.state_dict(), tmp_path / "encoder.pth")
    second = SMPSegmenter(3, "fpn", "resnet18", weights=tmp_path / "encoder.pth", norm="frozen").train()
    assert torch.equal(first.network.encoder.conv1.weight, second.network.encoder.conv1.weight)
    assert not any(m.training for m in second.network.encoder.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("backbone", "kwargs"), [("resnet10t", {"channels": [8, 8, 12, 16]}), ("tf_efficientnet_lite0", {})]
)
def test_an_encoder_of_timm_takes_the_classifiers_weights(backbone, kwargs):
    classifier = Classifier(backbone, 2, backbone_kwargs=kwargs).eval()
    model = SMPSegmenter(3, "fpn", f"tu-{backbone}", kwargs=kwargs).eval()
    model.take_backbone(classifier.backbone)
    images = torch.randn(1, 3, 64, 64)
    own = {name.replace("_", "."): value for name, value in classifier.backbone.state_dict().items()}
    for name, value in model.encoder.state_dict().items():
        assert any(key.endswith(name.replace("_", ".")) and torch.equal(value, own[key]) for key in own), name
    assert model(images).shape == (1, 3, 64, 64)
    with pytest.raises(ConfigError, match=r"the classifier .* this encoder"):
        SMPSegmenter(3, "fpn", "tu-resnet18").take_backbone(classifier.backbone)


@pytest.mark.parametrize("encoder", ["swin_tiny_patch4_window7_224", "vgg11"])
def test_what_cannot_dilate_is_sent_to_a_pyramid(encoder):
    with pytest.raises(ConfigError, match="not all can: take name=fpn"):
        SMPSegmenter(3, "deeplabv3plus", f"tu-{encoder}")


def test_frozen_norm_is_the_encoders_alone():
    """The decoder's statistics come from nowhere but this training."""
    model = SMPSegmenter(3, "deeplabv3plus", "resnet18", norm="frozen").train()
    norms = [m for m in model.network.decoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(m.training and m.weight.requires_grad for m in norms)
    assert not any(
        m.weight.requires_grad for m in model.network.encoder.modules() if isinstance(m, nn.BatchNorm2d)
    )


def test_names_that_library_does_not_know():
    with pytest.raises(ConfigError, match="cannot build 'deeplabv9'"):
        SMPSegmenter(3, "deeplabv9")
