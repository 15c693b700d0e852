"""The classifier: the published stride rule, what is frozen, and readers of weights."""

import pytest
import torch
from torch import nn

import ribseg
from ribseg.errors import ConfigError
from ribseg.models import read_state_dict

SMALL = {"channels": (8, 8, 12, 16)}


def small(**kwargs):
    return ribseg.Classifier("resnet10t", 3, **({"backbone_kwargs": SMALL} | kwargs))


def strides_and_dilations(module):
    return {(layer.stride, layer.dilation) for layer in module.modules() if isinstance(layer, nn.Conv2d)}


def test_published_network_removes_the_last_stride_without_dilation():
    model = ribseg.Classifier(num_classes=20)
    assert strides_and_dilations(model.tail[1]) == {((1, 1), (1, 1))}
    assert ((2, 2), (1, 1)) in strides_and_dilations(model.tail[0])
    assert model.weight.shape == (20, 2048, 1, 1)
    assert model.head.bias is None


def test_atrous_dilates_instead():
    dilations = {d for _, d in strides_and_dilations(small(atrous=True).tail[1])}
    assert (2, 2) in dilations


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize(
    "backbone",
    [
        "resnet10t",
        "convnext_atto",
        "mobilenetv3_small_050",
        "efficientnet_b0",
        "regnetx_002",
        "resnetblur18",
        "vgg11_bn",
    ],
)
def test_output_stride_of_families(backbone, stride):
    # VGG's head of 100 million weights is not looked at, and takes two seconds to make.
    kwargs = {"mlp_ratio": 0.01} if backbone == "vgg11_bn" else {}
    model = ribseg.Classifier(backbone, 2, output_stride=stride, backbone_kwargs=kwargs).eval()
    with torch.no_grad():
        maps = model.class_maps(torch.zeros(1, 3, 64, 96))
    assert maps.shape == (1, 2, 64 // stride, 96 // stride)


def test_logits_are_the_mean_of_the_class_maps():
    model, images = small().eval(), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), model.class_maps(images).mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_published_freeze_trains_the_last_two_stages_and_the_head_only():
    model = small()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backbone, head = model.parameter_groups()
    optimizer = torch.optim.SGD([*backbone, *head], lr=0.1)
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith("backbone.stages.0.") for name in changed)
    assert not any("running" in name for name in changed)
    assert any(name.startswith("backbone.stages.1.") for name in changed)
    assert "head.weight" in changed


def test_published_freeze_detaches_the_trunk_whatever_requires_gradients():
    model = small().requires_grad_(True)
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all(p.grad is None for p in model.trunk.parameters())
    assert all(p.grad is not None for p in model.tail[0].parameters())


def test_freeze_none_trains_everything_with_live_statistics():
    model = small(freeze="none")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    after = model.state_dict()
    assert any("running_mean" in n and not torch.equal(after[n], before[n]) for n in after)


def test_weights_of_a_file_are_loaded(tmp_path):
    import timm

    source = timm.create_model("resnet10t", **SMALL)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = small(weights=tmp_path / "weights.pth")
    torch.testing.assert_close(model.tail[1].layer4[0].conv1.weight, source.layer4[0].conv1.weight)
    torch.testing.assert_close(model.trunk.bn1.weight, source.bn1.weight)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(
        ConfigError, match=r"has no weights of the backbone 'resnet10t'.*keys: nothing.*conv1"
    ):
        small(weights=tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match="no file"):
        small(weights=tmp_path / "absent.pth")


def test_nothing_is_unpickled(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "junk.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "junk.safetensors").write_bytes(b"not a checkpoint")
    for name in ("evil.pth", "junk.pth", "junk.safetensors"):
        with pytest.raises(ConfigError, match=name):
            read_state_dict(tmp_path / name)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnett50"}, "similar names"),
        ({"backbone": "gmlp_ti16_224"}, "ResNeXt"),
        ({"output_stride": 7}, "8, 16 or 32"),
        ({"num_classes": 0}, "num_classes"),
        ({"freeze": "some"}, "published"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ribseg.Classifier(**({"backbone": "resnet10t"} | arguments))


def released_checkpoint(model):
    """The state dict that the released network writes: every layer up to three times."""
    state, layers = {}, {}
    for key, value in model.state_dict().items():
        layers[key.split(".", 3)[3] if key.startswith("backbone") else key] = value
    index = {"conv1": "0.0", "bn1": "0.1", "layer1": "0.4", "layer2": "1.0", "layer3": "2.0", "layer4": "3.0"}
    for key, value in layers.items():
        if key == "head.weight":
            state |= {"classifier.weight": value, "newly_added.0.weight": value}
            continue
        layer, rest = key.split(".", 1)
        stage, place = index[layer].split(".")
        state[f"resnet50.{key}"] = value
        state[f"stage{int(stage) + 1}.{place}.{rest}"] = value
        state[f"backbone.{stage}.{place}.{rest}"] = value
    return state


@pytest.fixture(scope="module")
def resnet50():
    torch.manual_seed(0)
    return ribseg.Classifier(num_classes=20)


@pytest.fixture
def rewritten(resnet50):
    # The model's own keys hold the stage: backbone.stages.1.layer3.0.conv1.weight
    state = {}
    for key, value in resnet50.state_dict().items():
        state[key.replace("backbone.stages.", "backbone.") if key.startswith("backbone") else key] = value

    class Renamed:
        def state_dict(self):
            return {k if k == "head.weight" else "backbone.stages." + k[9:]: v for k, v in state.items()}

    return released_checkpoint(Renamed())


@pytest.mark.parametrize("keep", ["", "resnet50.", "stage", "backbone."])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_checkpoint_is_read_from_any_of_its_copies(tmp_path, resnet50, rewritten, keep, prefix):
    heads = ("classifier.", "newly_added.")
    state = {prefix + k: v for k, v in rewritten.items() if k.startswith((keep, *heads))}
    torch.save(state, tmp_path / "res50_cam.pth")
    loaded = ribseg.load_official_classifier(tmp_path / "res50_cam.pth")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in resnet50.state_dict().items())


def test_official_checkpoint_may_lack_the_counters_of_batch_norm(tmp_path, rewritten):
    torch.save({k: v for k, v in rewritten.items() if "num_batches" not in k}, tmp_path / "c.pth")
    assert ribseg.load_official_classifier(tmp_path / "c.pth").num_classes == 20


def test_contradicting_or_incomplete_official_checkpoints_are_refused(tmp_path, rewritten):
    path = tmp_path / "c.pth"
    torch.save(rewritten | {"stage1.0.weight": rewritten["stage1.0.weight"] + 1}, path)
    with pytest.raises(ConfigError, match="twice"):
        ribseg.load_official_classifier(path)
    torch.save({k: v for k, v in rewritten.items() if "layer3" not in k and "stage3" not in k}, path)
    torch.save({k: v for k, v in rewritten.items() if k.startswith(("stage1", "classifier"))}, path)
    with pytest.raises(ConfigError, match="missing"):
        ribseg.load_official_classifier(path)
    for wrong in ({"fc.weight": torch.zeros(1)}, {"classifier.weight": torch.tensor(1.0)}):
        torch.save(wrong, path)
        with pytest.raises(ConfigError, match=r"classifier\.weight"):
            ribseg.load_official_classifier(path)
    short = {"stage1.0.weight": torch.zeros(64, 3, 7, 6)}
    torch.save({k: v for k, v in rewritten.items() if k.startswith(("stage", "classifier"))} | short, path)
    with pytest.raises(
        ConfigError,
        match=r"c\.pth does not fit: expected 'backbone.*conv1\.weight' of shape .*7, 7\), found .*7, 6",
    ):
        ribseg.load_official_classifier(path)
