"""Transformers as classifiers: their features are timm's patch tokens, and RIB adapts their last blocks."""

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from quick_run import CONF, folder_run, settings
from test_rib import CLASSES, LABELS, STEPS, check_left_after_an_error, references, views
from torch import nn

import ribseg
from ribseg.errors import ConfigError
from ribseg.models import Backbone, DeepLabV2, IRNet, PSANet, load_into, load_weights
from ribseg.models.imagenet import imagenet_classifier
from ribseg.models.tokens import map_of, tokens_of

TINY = {"depth": 3, "embed_dim": 32, "num_heads": 2}
WINDOWS = {"depths": (1, 1, 1, 2), "embed_dim": 16, "num_heads": (1, 1, 2, 2)}
STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
# Arguments that make them small, and pixels per location. Those that the oldest timm lacks are skipped there.
VITS = {
    "vit_tiny_patch16_224": (TINY, 16),  # a class token
    "vit_base_patch8_224": (TINY, 8),
    "vit_medium_patch16_gap_240": (TINY, 16),  # no token but the patches, norm after pooling
    "vit_medium_patch16_reg4_gap_256": (TINY, 16),  # registers alone
    "vit_base_patch16_clip_224": (TINY, 16),  # a norm before the blocks
    "vit_base_patch32_clip_quickgelu_224": (TINY, 32),
    "vit_base_patch16_siglip_224": (TINY, 16),  # attention pooling
    "vit_small_patch14_dinov2": (TINY, 14),
    "vit_small_patch14_reg4_dinov2": (TINY, 14),  # class token and registers
    "deit_tiny_patch16_224": (TINY, 16),
    "deit_tiny_distilled_patch16_224": (TINY, 16),  # class and distillation token
    "deit3_small_patch16_224": (TINY, 16),  # no position of the class token
    "eva_giant_patch14_224": (TINY, 14),
    "eva02_tiny_patch14_224": (TINY, 14),  # rotary positions
    "vit_medium_patch16_rope_reg1_gap_256": (TINY, 16),
    "vit_small_patch16_rope_mixed_224": (TINY, 16),  # learnt for each block
    "vit_small_patch16_dinov3": (TINY, 16),
    "vit_tiny_r_s16_p8_224": (TINY, 32),  # a ResNet before the blocks
}
HIERARCHICAL = {
    "swin_tiny_patch4_window7_224": (WINDOWS, 32),
    "swinv2_tiny_window8_256": (WINDOWS, 32),
    "mambaout_femto": (STAGES, 32),
}
SWIN, DEIT = "swin_tiny_patch4_window7_224", "deit_tiny_patch16_224"
SMALL = {name: case for name, case in (VITS | HIERARCHICAL).items() if timm.is_model(name)}
SIZES = ((64, 96), (97, 81), (33, 240), (7, 5))
ODD = views(scales=(1.0, 0.5), size=(55, 83))
QUIET = {"margin": None, "area_limit": None, "loss_views": (0,)}  # without stop rules


def any_size(name):
    """Timm's arguments, said again: patches for images of any size, or windows with masks for any size."""
    if name in HIERARCHICAL:
        return {"strict_img_size": False} if "swin" in name else {}
    return {"dynamic_img_size": True, "dynamic_img_pad": True}


@torch.no_grad()
def timms(name):
    """Timm's network, small and with weights such that everything counts."""
    torch.manual_seed(0)
    network = timm.create_model(name, **SMALL[name][0], **any_size(name)).eval()
    for weight in network.parameters():
        weight.add_(torch.randn_like(weight) * 0.2)
    return network


def patches_of(network, name, images):
    """(N, D, h, w) by timm: the patches of `forward_features` after whichever norm there is."""
    stride = SMALL[name][1]
    if name in HIERARCHICAL:
        sides = [-side % (stride if "swin" in name else 1) for side in images.shape[-2:]]
        return network.forward_features(F.pad(images, (0, sides[1], 0, sides[0]))).permute(0, 3, 1, 2)
    tokens = network.forward_features(images)[:, network.num_prefix_tokens :]
    if isinstance(network.norm, nn.Identity):  # that of the average
        norm, average = network.fc_norm, tokens.mean(1, keepdim=True)
        scale = (average.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        centred = (tokens - tokens.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias
        torch.testing.assert_close(centred.mean(1), norm(average)[:, 0])
        tokens = centred
    rows, columns = (-(-side // stride) for side in images.shape[-2:])
    return tokens.transpose(1, 2).reshape(len(images), -1, rows, columns)


def classifier(name="deit3_small_patch16_224", **given):
    """A small classifier with timm's random weights."""
    kwargs, stride = SMALL[name]
    model = ribseg.Classifier(name, CLASSES, output_stride=stride, backbone_kwargs=kwargs, **given)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    return model


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_features_are_timms_patches(name, tmp_path):
    network, (kwargs, stride) = timms(name), SMALL[name]
    backbone = Backbone(name, output_stride=stride, kwargs=kwargs).eval()
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    load_weights(backbone, tmp_path / "timm.pth")
    assert backbone.num_features == network.num_features
    for height, width in SIZES:
        images = torch.randn(2, 3, height, width)
        features = backbone(images)
        assert features.shape[-2:] == (-(-height // stride), -(-width // stride))
        torch.testing.assert_close(features, patches_of(network, name, images))


@pytest.mark.parametrize("name", [SWIN, "vit_tiny_patch16_224"])
@torch.no_grad()
def test_at_timms_own_size_its_default_network_gives_the_same(name):
    network = timms(name)
    fixed = timm.create_model(name, **SMALL[name][0]).eval()
    fixed.load_state_dict(network.state_dict())
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(fixed.forward_features(images), network.forward_features(images))


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_tokens_are_a_map_and_back(prefix, width):
    tokens = torch.randn(2, prefix + 3 * width, 4)
    maps = map_of(tokens, prefix, width)
    assert maps.shape == (2, 4, -(-prefix // width) + 3, width)
    assert torch.equal(tokens_of(maps, prefix), tokens)
    assert torch.equal(maps[:, :, -3:].flatten(2).transpose(1, 2), tokens[:, prefix:])


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", SWIN])
def test_logits_are_the_average_of_class_maps(name):
    model = classifier(name).eval()
    images = torch.randn(2, 3, 61, 90)
    torch.testing.assert_close(model(images), model.class_maps(images).mean((2, 3)))


@pytest.mark.parametrize("name", SMALL)
def test_what_learns(name):
    """As published the last two blocks, the norm and the head; else every weight that there is."""
    images = torch.randn(2, 3, 70, 64)
    model = classifier(name)
    model(images).sum().backward()
    trunk, tail = list(model.trunk.parameters()), [p for stage in model.tail for p in stage.parameters()]
    assert not any(p.requires_grad or p.grad is not None for p in trunk)
    assert all(p.grad is not None for p in (*tail, model.weight))
    whole = classifier(name, freeze="none")
    whole(images).sum().backward()
    assert [key for key, p in whole.named_parameters() if p.grad is None] == []


def test_where_transformers_are_cut():
    vit, swin = classifier(), classifier(SWIN)
    assert [list(dict(stage.named_children())) for stage in vit.tail] == [["blocks_1"], ["blocks_2", "norm"]]
    assert [list(dict(stage.named_children())) for stage in swin.tail] == [["layers_2"], ["layers_3", "norm"]]


def test_a_copy_has_its_own_positions():
    model = classifier("eva02_tiny_patch14_224")
    twin = copy.deepcopy(model)
    assert twin.tail[0].rotation.rope is twin.trunk.network.rope is not model.trunk.network.rope


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "eva02_tiny_patch14_224", SWIN])
def test_rib_is_the_plain_loop(name):
    """Everything computed anew in each step, by the plain algorithm."""
    model, seen = classifier(name), views(size=(61, 90))
    rib = ribseg.RIB(model, ribseg.GAP(), STEPS, lr=1e-3, margin=None, area_limit=None)
    out = rib(seen, LABELS, references())
    rules = {"threshold": float("inf"), "margin": 1e9, "area_limit": 1.0}  # GAP, and no stops
    maps = ribseg.functional.rib(model, seen, LABELS, references(), steps=STEPS, lr=1e-3, **rules)
    for ours, theirs in zip(out.maps, maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    first = ribseg.cam(model, seen, LABELS).maps[0]
    assert not torch.allclose(out.maps[0], STEPS * first, rtol=1e-2)  # it does adapt


@pytest.mark.parametrize("trainable", ["published", "layer4", "head"])
@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"])
def test_no_step_is_cam_and_nothing_is_changed(name, trainable):
    model = classifier(name)
    before, modes = copy.deepcopy(model.state_dict()), [layer.training for layer in model.modules()]
    plain = ribseg.cam(model, ODD, LABELS)
    none = ribseg.RIB(model, steps=0, trainable=trainable, **QUIET)(ODD, LABELS)
    one = ribseg.RIB(model, steps=1, trainable=trainable, **QUIET)(ODD, LABELS)
    for first, second, third in zip(plain.maps, none.maps, one.maps, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, third)
    several = ribseg.RIB(model, steps=3, lr=1e-3, trainable=trainable, **QUIET)(ODD, LABELS)
    assert several.steps == 3
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert modes == [layer.training for layer in model.modules()]
    assert all(p.grad is None for p in model.parameters())


def test_it_is_left_so_after_an_error_as_well():
    check_left_after_an_error(classifier(), ODD, **QUIET)


def test_stop_rules_are_those_of_other_networks():
    rib = {"steps": STEPS, "lr": 1e-3, "loss_views": (0,)}
    assert ribseg.RIB(classifier(), margin=1e-6, area_limit=None, **rib)(ODD, LABELS).stopped == "margin"
    assert ribseg.RIB(classifier(), margin=None, area_limit=0.0, **rib)(ODD, LABELS).stopped == "area"


REFUSED = {  # name, arguments of timm, of the classifier, message
    "another stride": (
        "vit_small_patch14_dinov2",
        {},
        {"output_stride": 16},
        "expected output_stride=14, got 16",
    ),
    "a stride of a CNN": (DEIT, {}, {"output_stride": 8}, "expected output_stride=16, got 8"),
    "a stride of a Swin": (SWIN, {}, {"output_stride": 16}, "expected output_stride=32, got 16"),
    "dilation": (DEIT, {}, {"atrous": True}, "atrous=true has no meaning; set atrous=false"),
    "no trunk": (DEIT, {"depth": 2}, {}, "needs more than 2 blocks"),
    "one size": (DEIT, {"dynamic_img_size": False}, {}, "expected dynamic_img_size=True"),
    "one size of a Swin": (SWIN, {"strict_img_size": True}, {}, "expected strict_img_size=False"),
    "lost patches": (DEIT, {"patch_drop_rate": 0.5}, {}, "expected patch_drop_rate=0"),
    "oblong patches": (DEIT, {"patch_size": (16, 8)}, {}, "expected square patches.*got 16 x 8 pixels"),
    "unknown argument": (DEIT, {"channels": [8]}, {}, "timm cannot build.*channels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused(case):
    name, kwargs, given, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        ribseg.Classifier(name, 2, backbone_kwargs={**SMALL[name][0], **kwargs}, **given)


def test_positions_drawn_at_random_are_refused():
    name, kwargs = "vit_small_patch16_dinov3", {**TINY, "rope_rescale_coords": 2.0}
    if name not in SMALL:
        pytest.skip(f"timm {timm.__version__} has no DINOv3")
    try:
        timm.create_model(name, **kwargs)
    except TypeError:
        pytest.skip(f"timm {timm.__version__} draws no positions")
    with pytest.raises(ConfigError, match=r"backbone_kwargs=\{rope_rescale_coords: null\}"):
        Backbone(name, kwargs=kwargs)


def test_networks_that_need_a_cnn_say_so():
    vit, swin = (classifier(name).backbone for name in ("vit_tiny_patch16_224", SWIN))
    for backbone in (vit, swin):
        with pytest.raises(ConfigError, match="IRNet needs the single stages of a CNN"):
            IRNet(backbone)
    with pytest.raises(ConfigError, match="PSANet needs a backbone with features at stride 8"):
        PSANet(vit)
    assert PSANet(swin)(torch.zeros(1, 3, 70, 96)).shape == (1, 448, 12, 12)  # padded to 96 pixels
    with pytest.raises(ConfigError, match="use a CNN such as a ResNet"):
        DeepLabV2(3, "vit_tiny_patch16_224", backbone_kwargs=TINY)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", SWIN])
def test_files_describe_themselves(name, tmp_path):
    model = classifier(name, classes=[str(number) for number in range(CLASSES)]).eval()
    model.save(tmp_path / "classifier.safetensors")
    loaded = ribseg.load(tmp_path / "classifier.safetensors")
    images = torch.randn(1, 3, 50, 70)
    assert (loaded.classes, loaded.mean) == (model.classes, model.mean)
    assert torch.equal(loaded.class_maps(images), model.class_maps(images))


AVERAGE = {"global_pool": "avg"}


@pytest.mark.parametrize(
    ("name", "stride", "kwargs"),
    [
        (DEIT, 16, AVERAGE),
        (DEIT, 16, AVERAGE | {"fc_norm": False}),
        ("eva02_tiny_patch14_224", 14, {}),
        (SWIN, 32, {}),
        ("convnext_atto", 32, {"depths": (1, 1, 2, 1)}),
    ],
)
def test_the_logits_of_timms_trained_classifiers(name, stride, kwargs, tmp_path):
    kwargs = SMALL.get(name, ({},))[0] | kwargs
    sizes = any_size(name) if name in SMALL else {}
    network = timm.create_model(name, num_classes=CLASSES, **sizes, **kwargs).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "timm.pth")
    model = ribseg.Classifier(name, CLASSES, output_stride=stride, freeze="none", backbone_kwargs=kwargs)
    assert load_into(model, tmp_path / "timm.pth") == [model.timm_name("head.bias")]
    images, bias = torch.randn(2, 3, 2 * 7 * 16, 2 * 7 * 16), network.get_classifier().bias
    torch.testing.assert_close(model.eval()(images) + bias, network(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.class_maps(images).mean((-2, -1)), model(images), rtol=1e-4, atol=1e-4)


def test_a_trained_head_over_the_class_token_is_refused(tmp_path):
    network = timm.create_model(DEIT, num_classes=CLASSES, **SMALL[DEIT][0])
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    with pytest.raises(ConfigError, match=r"over the class token.*global_pool: avg, fc_norm: false"):
        load_into(classifier(DEIT), tmp_path / "timm.pth")


def test_the_head_of_a_network_for_two_losses_is_the_first():
    assert classifier("deit_tiny_distilled_patch16_224").backbone.head_name == "head"


def small_networks(monkeypatch, name):
    """Lets timm's names stand for small networks with random weights; returns the one with its head."""
    whole = timm.create_model(name, **SMALL[name][0]).eval()
    nn.init.normal_(whole.get_submodule("head.fc" if "swin" in name else "head").weight)
    monkeypatch.setattr("ribseg.models.imagenet.create_network", lambda *_: whole)
    small = timm.create_model(name, **SMALL[name][0], **any_size(name))
    monkeypatch.setattr("ribseg.models.backbone.create_network", lambda *_: small)
    return whole


def test_a_swin_with_its_head_needs_no_training(monkeypatch):
    whole = small_networks(monkeypatch, SWIN)
    model, images = imagenet_classifier(SWIN), torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(model(images) + whole.head.fc.bias, whole(images))


def test_a_head_over_the_class_token_gives_no_maps(monkeypatch):
    small_networks(monkeypatch, DEIT)
    with pytest.raises(ConfigError, match=r"does not take the average of the patches.*train a head"):
        imagenet_classifier(DEIT)


@pytest.mark.parametrize("method", ["cam", "rib"])
def test_one_image(method):
    model = classifier(classes=["a", "b", "c", "d", "e"])
    image = np.random.default_rng(0).integers(0, 255, (50, 75, 3), dtype=np.uint8)
    settings = ["rib.steps=2", "rib.lr=1e-4"] if method == "rib" else []
    maps = ribseg.localize(image, ["b", "d"], model, method, overrides=settings)
    assert maps.full.shape == (2, 50, 75)
    assert bool(maps.full.isfinite().all())
    assert float(maps.full.max()) > 0.9


def chosen(name, kwargs="{depth: 3, embed_dim: 32, num_heads: 2}"):
    """Settings of a run with a network of timm in the place of the ResNet."""
    replaced = ["classifier.model.backbone_kwargs=null", f"classifier.model.backbone_kwargs={kwargs}"]
    return [f"classifier.model.backbone={name}", *replaced, "rib.lr=1e-3"]


def test_a_run_with_a_transformer(tmp_path, tree):
    wanted = [*chosen(DEIT), "run=[classifier,cam,rib,evaluate]"]
    results = folder_run(tmp_path, tree, *wanted, "classifier.model.freeze=published")
    assert results["adaptation"]["images"] == 10
    assert results["adaptation"]["stopped"]["not_finite"] == 0
    with np.load(f"{results['store']['rib']}/maps/im_00.npz") as maps:
        assert all(np.isfinite(maps[key]).all() for key in maps.files if maps[key].dtype.kind == "f")
    assert (
        ribseg.load(f"{results['store']['classifier']}/classifier.safetensors").settings["output_stride"]
        == 16
    )


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("vit_small_patch14_dinov2", [], "expected output_stride=14, got 16"),
        (DEIT, ["run=[classifier,cam,rib,affinity_labels,affinity]"], "IRNet needs"),
    ],
)
def test_a_run_that_cannot_work_ends_before_its_first_stage(tmp_path, tree, name, extra, message):
    with pytest.raises(ConfigError, match=message):
        folder_run(tmp_path, tree, *chosen(name), *extra)
    assert not list((tmp_path / "store").glob("classifier-*"))


@pytest.mark.parametrize("choice", ["deit_small", "vit_clip"])
def test_a_transformer_by_one_setting(tmp_path, choice):
    cfg = settings("rib_voc", tmp_path, "data.root=nowhere", f"classifier={choice}")
    written = OmegaConf.load(CONF / "classifier" / f"{choice}.yaml")
    name = (written.get("classifier") or written).model.backbone
    known = timm.get_pretrained_cfg(name)
    for key in ("mean", "std"):
        assert np.allclose(cfg.data[key], getattr(known, key), atol=1e-4)
    assert cfg.classifier.model.output_stride is None
    assert cfg.classifier.model.freeze == "published"
