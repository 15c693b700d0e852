"""Grad-CAM and its relatives: equal to the package called directly, and methods like all others."""

import sys

import numpy as np
import pytest
import torch
from quick_run import folder_run
from torch import nn

import ribseg
from ribseg.errors import ConfigError
from ribseg.functional.cam import class_maps, merge_mirrored
from ribseg.methods.gradcam import GradCAM

package = pytest.importorskip("pytorch_grad_cam", reason="pip install 'ribseg[cams]'")
NAMES = (
    "GradCAM",
    "XGradCAM",
    "LayerCAM",
    "HiResCAM",
    "ScoreCAM",
)
NARROW = {"channels": (8, 8, 12, 16)}


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return ribseg.Classifier("resnet10t", 3, backbone_kwargs=NARROW).eval()


@pytest.fixture
def views():
    torch.manual_seed(1)
    images = [torch.randn(3, 48, 64), torch.randn(3, 33, 47)]
    return [torch.stack([image, image.flip(-1)]) for image in images]


def direct(classifier, layer, name, view, number):
    """The package's own maps, with the classifier as its model."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(number)] * len(view)
    return getattr(package, name)(classifier, [layer])(view, targets)


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_those_of_the_package(name, classifier, views):
    found = GradCAM(classifier, name)(views=views, labels=torch.tensor([1.0, 0.0, 1.0]))
    assert found.classes.tolist() == [0, 2]
    for maps, view in zip(found.maps, views, strict=True):
        for place, number in enumerate((0, 2)):
            last = classifier.backbone.stages[-1]
            expected = torch.from_numpy(direct(classifier, last, name, view, number))
            torch.testing.assert_close(maps[place], merge_mirrored(expected[:, None])[0], atol=2e-4, rtol=0)
    assert all(maps.max() > 0.5 for maps in found.maps)


@pytest.mark.parametrize("scale", [1.0, 0.03])
def test_gradcam_plus_plus_is_its_formula_in_double_precision(classifier, views, scale):
    """Equations 7 and 19 of Chattopadhay et al., WACV 2018; grad-cam 1.5.7 itself hardly divides."""
    with torch.no_grad():
        classifier.head.weight.mul_(scale)
    view = views[0][:1]
    with torch.no_grad():
        features = classifier.features(view).double()
    features.requires_grad_()
    score = (features.mean((2, 3)) @ classifier.weight.double().flatten(1).T)[0, 0]
    (g,) = torch.autograd.grad(score, features)
    alpha = g**2 / (2 * g**2 + features.sum((2, 3), keepdim=True) * g**3)
    weights = (g.relu() * alpha.nan_to_num()).sum((2, 3), keepdim=True)
    expected = (weights * features).sum(1).relu()[0].detach().numpy()
    scaled = scaled_as_the_package(expected, view)
    found = GradCAM(classifier, "GradCAMPlusPlus")._maps(view, [0])[0, 0]
    torch.testing.assert_close(found, torch.from_numpy(scaled).float(), atol=2e-3, rtol=0)


def scaled_as_the_package(expected, view):
    from pytorch_grad_cam.utils.image import scale_cam_image

    return scale_cam_image(scale_cam_image(expected[None], view.shape[-2:][::-1]))[0]


@pytest.mark.parametrize("name", ["XGradCAM", "ScoreCAM"])
def test_the_other_relatives_are_their_formulas_in_double_precision(classifier, views, name):
    """Fu et al., BMVC 2020: weights sum(g A) / sum(A). Wang et al., CVPRW 2020: softmax of masked scores."""
    view, heads = views[0][:1], classifier.weight.double().flatten(1)
    with torch.no_grad():
        features = classifier.features(view).double()[0]
    number = int((heads @ features.mean((1, 2))).argmax())
    if name == "XGradCAM":
        gradient = heads[number, :, None, None] / features[0].numel()
        weights = (gradient * features).sum((1, 2)) / features.sum((1, 2)).clamp(min=1e-7)
    else:
        large = torch.nn.UpsamplingBilinear2d(size=view.shape[2:])(features[None])[0]
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        masked = view[0] * ((large - low) / (high - low).clamp(min=1e-8))[:, None].float()
        with torch.no_grad():
            scores = classifier.features(masked).double().mean((2, 3)) @ heads[number]
        weights = scores.softmax(0)
    expected = (weights[:, None, None] * features).sum(0).clamp(min=0).detach().numpy()
    assert expected.max() > 0
    found = GradCAM(classifier, name)._maps(view, [number])[0, 0]
    scaled = torch.from_numpy(scaled_as_the_package(expected, view)).float()
    torch.testing.assert_close(found, scaled, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["EigenCAM", "EigenGradCAM"])
def test_the_sign_of_a_principal_component_does_not_count(classifier, views, name, monkeypatch):
    """The sign of a singular vector is arbitrary: an image and its mirror image could cancel each other."""
    method, svd = GradCAM(classifier, name), np.linalg.svd
    before = method._maps(views[0], [0])

    def other(matrix, **given):
        left, values, right = svd(matrix, **given)
        return -left, values, -right

    monkeypatch.setattr(np.linalg, "svd", other)
    torch.testing.assert_close(method._maps(views[0], [0]), before)


def test_gradcam_on_the_features_is_the_cam(classifier, views):
    from pytorch_grad_cam.utils.image import scale_cam_image

    view = views[0]
    found = GradCAM(classifier)(views=[view], labels=torch.ones(3)).maps[0]
    with torch.no_grad():
        maps = class_maps(classifier.features(view), classifier.weight).relu().numpy()
    for number, expected in enumerate(maps.swapaxes(0, 1)):
        scaled = torch.from_numpy(scale_cam_image(scale_cam_image(expected, (64, 48))))
        torch.testing.assert_close(found[number], merge_mirrored(scaled[:, None])[0], atol=1e-4, rtol=0)


def test_an_earlier_layer(classifier, views):
    layer = "backbone.stages.1"
    found = GradCAM(classifier, "LayerCAM", layer)(views=views, labels=torch.tensor([0.0, 1.0, 0.0]))
    expected = torch.from_numpy(direct(classifier, classifier.get_submodule(layer), "LayerCAM", views[0], 1))
    torch.testing.assert_close(found.maps[0], merge_mirrored(expected[:, None]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("fails", [False, True])
def test_the_classifier_is_not_changed(fails, classifier, views, monkeypatch):
    classifier.train()
    weights = {name: value.clone() for name, value in classifier.state_dict().items()}
    flags = {name: p.requires_grad for name, p in classifier.named_parameters()}
    if fails:
        monkeypatch.setattr(package.GradCAM, "get_cam_weights", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            GradCAM(classifier)(views=views, labels=torch.ones(3))
    else:
        GradCAM(classifier)(views=views, labels=torch.ones(3))
    assert classifier.training
    assert all(torch.equal(value, weights[name]) for name, value in classifier.state_dict().items())
    assert {name: p.requires_grad for name, p in classifier.named_parameters()} == flags
    assert all(p.grad is None for p in classifier.parameters())
    assert not any(module._forward_hooks for module in classifier.modules())


def test_under_no_grad_and_autocast_and_without_classes(classifier, views):
    method, labels = GradCAM(classifier), torch.tensor([1.0, 0.0, 0.0])
    expected = method(views=views, labels=labels).maps
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = method(views=views, labels=labels).maps
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert [len(maps) for maps in method(views=views, labels=torch.zeros(3)).maps] == [0, 0]


class Own(nn.Module):
    """A classifier with nothing but features and weight."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 5, 8, stride=8)
        self.weight = nn.Parameter(torch.randn(2, 5, 1, 1))

    def features(self, images):
        """The features, without a graph."""
        with torch.no_grad():
            return self.body(images).relu()


def test_any_classifier_with_features_and_weight(views):
    found = GradCAM(Own())(views=views, labels=torch.ones(2))
    assert [tuple(maps.shape) for maps in found.maps] == [(2, 48, 64), (2, 33, 47)]


def test_what_cannot_be_used_is_said(classifier, monkeypatch):
    with pytest.raises(ConfigError, match=r"cam: expected one of .*GradCAM, .*got 'GradCam'"):
        GradCAM(classifier, "GradCam")
    with pytest.raises(ConfigError, match=r"layer: the classifier has no 'stage4'; among others backbone"):
        GradCAM(classifier, layer="stage4")
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ConfigError, match=r"needs the package grad-cam .*pip install 'ribseg\[cams\]'"):
        GradCAM(classifier)


@pytest.mark.usefixtures("undrawn")
def test_they_are_methods_like_all_others(tmp_path, tree):
    run = "run=[classifier,methods,evaluate,report]"
    names = ["cam", "rib", "gradcam", "gradcam_plus_plus", "layercam", "eigencam"]
    results = folder_run(tmp_path, tree, run, f"methods=[{','.join(names)}]", "rib.lr=1e-3")
    assert [name for name in results["localization"] if not results["localization"][name]["control"]] == names
    assert {results["methods"][name]["images"] for name in names} == {10}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Grad-CAM++" in page
    assert "gain_over_cam" in results["localization"]["layercam"]["split"]["val"]
