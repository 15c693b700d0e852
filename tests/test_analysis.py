"""Gradients per layer against hand-made ones, high gradient ratios, saturation, information."""

import math

import pytest
import torch
from torch import nn

import ribseg
from ribseg.analysis import (
    binned_information,
    class_scores,
    gradient_map,
    gradient_stack,
    gradients_before_and_after,
    high_gradient_ratio,
    input_gradients,
    normalized_gradient,
    saturation,
)
from ribseg.analysis.summary import summarize_seeds
from ribseg.errors import ConfigError
from ribseg.functional.activations import ACTIVATIONS, last_activation, slope
from ribseg.functional.losses import cross_entropy, rib_loss, signed_rib_loss, squared_error
from ribseg.methods.pooling import Activated
from ribseg.models import ToyNet
from ribseg.types import REGIONS


def pixelwise(*weights):
    """1x1 convolutions with known weights, a ReLU behind each."""
    layers = []
    for weight in weights:
        layers.append(nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(inplace=True)))
        nn.init.constant_(layers[-1][0].weight, weight)
    return nn.Sequential(*layers)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return ToyNet(channels=(4, 8, 8), strides=(1, 2, 1))


@pytest.fixture
def images():
    return torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])


def test_gradients_of_pixelwise_layers_are_products_of_slopes():
    network = pixelwise(2.0, -3.0, 5.0)
    x = torch.tensor([[[[1.0, -1.0]]]])
    first, second, third, whole = input_gradients(network, x, list(network))
    assert first.tolist() == [[[[2.0, 0.0]]]]
    # -3 * relu(2x) is never positive: from the second layer on nothing passes.
    assert second.tolist() == third.tolist() == whole.tolist() == [[[[0.0, 0.0]]]]


def test_an_in_place_activation_behind_a_layer_does_not_change_its_gradient():
    network = pixelwise(-2.0)
    (gradient,) = input_gradients(network, torch.ones(1, 1, 1, 2), [network[0][0]], output=False)
    assert gradient.tolist() == [[[[-2.0, -2.0]]]]


def test_a_convolution_spreads_the_gradient_as_its_kernel_sums_say():
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    (gradient,) = input_gradients(layer, torch.zeros(1, 1, 3, 3), [layer], output=False)
    assert gradient[0, 0].tolist() == [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]


def test_gradients_agree_with_finite_differences(net, images):
    net, x = net.double(), images[:1].double()
    stack = gradient_stack(net, x, LABELS[:1], list(net.layers), torch.tanh)
    step = torch.zeros_like(x)
    step[0, 0, 7, 9] = 1e-6

    def measured(forward):
        return float((forward(x + step).sum() - forward(x - step).sum()) / 2e-6)

    with torch.no_grad():
        for depth, gradient in enumerate(stack[:-1]):
            part = nn.Sequential(*net.layers[: depth + 1])
            assert float(gradient[0, 0, 7, 9]) == pytest.approx(measured(part), rel=1e-4, abs=1e-8)
        scores = class_scores(net, LABELS[:1], torch.tanh)
        assert float(stack[-1][0, 0, 7, 9]) == pytest.approx(measured(scores), rel=1e-4, abs=1e-8)


def test_rows_of_a_batch_do_not_mix(net, images):
    whole = gradient_stack(net, images, LABELS, list(net.layers))
    for index in range(len(images)):
        alone = gradient_stack(net, images[index : index + 1], LABELS[index : index + 1], list(net.layers))
        for a, b in zip(whole, alone, strict=True):
            torch.testing.assert_close(a[index : index + 1], b)


def test_the_activation_scales_the_last_gradient_of_an_image_and_no_other(net, images):
    plain = gradient_stack(net, images, LABELS, list(net.layers))
    active = gradient_stack(net, images, LABELS, list(net.layers), torch.sigmoid)
    logits = (net(images) * LABELS).sum(1)
    factor = slope(torch.sigmoid, logits)
    torch.testing.assert_close(active[-1], plain[-1] * factor[:, None, None, None])
    torch.testing.assert_close(normalized_gradient(active[-1]), normalized_gradient(plain[-1]))
    assert all(torch.equal(a, b) for a, b in zip(plain[:-1], active[:-1], strict=True))


def test_looking_leaves_no_trace(net, images):
    net.train()
    net.layers[1].eval()
    net.weight.grad = torch.ones_like(net.weight)
    with torch.no_grad():
        gradient_stack(net, images, LABELS, list(net.layers))
    assert [layer.training for layer in net.layers] == [True, False, True]
    assert torch.equal(net.weight.grad, torch.ones_like(net.weight))
    assert net.layers[0][0].weight.grad is None
    assert not any(module._forward_hooks for module in net.modules())


def test_a_classifier_with_a_detached_trunk():
    classifier = ribseg.Classifier("resnet10t", 2, backbone_kwargs={"channels": [8, 8, 12, 16]})
    images = torch.rand(2, 3, 32, 32)
    stages = [classifier.trunk, *classifier.tail]
    stack = gradient_stack(classifier, images, torch.eye(2), stages)
    assert [tuple(gradient.shape) for gradient in stack] == [(2, 3, 32, 32)] * 4
    assert all(float(gradient.abs().max()) > 0 for gradient in stack)
    # The published recipe detaches the trunk from the weights' gradients, not from those of the images.
    assert all(float(gradient.abs().max()) > 0 for gradient in input_gradients(classifier, images, stages))
    apart = nn.Sequential(classifier.trunk)
    with pytest.raises(ValueError, match="detached"):
        input_gradients(lambda x: classifier.tail[0](apart(x).detach()), images, [classifier.tail[0]])


def test_layers_that_cannot_be_looked_at(net, images):
    with pytest.raises(ValueError, match="not called"):
        input_gradients(net, images, [nn.ReLU()])
    lstm = nn.LSTM(4, 4)
    with pytest.raises(TypeError, match="tensor, got tuple"):
        input_gradients(lambda x: lstm(x)[0], torch.rand(2, 3, 4), [lstm])
    with pytest.raises(TypeError, match="features"):
        gradient_stack(nn.ReLU(), images, LABELS, [])


def test_ratio_on_fabricated_gradients():
    gradient = torch.tensor([[[1.0, -0.5], [0.2, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    top = torch.tensor([[True, True], [False, False]]).expand(2, 2, 2)
    assert high_gradient_ratio(gradient, top).tolist() == [1.0, 0.0]
    assert high_gradient_ratio(gradient, ~top).tolist() == [0.0, 0.0]
    assert high_gradient_ratio(gradient, ~top, threshold=0.1).tolist() == [0.5, 0.0]
    # Exceeds: a pixel at the threshold does not count.
    assert high_gradient_ratio(gradient, top, threshold=0.5).tolist() == [0.5, 0.0]
    assert math.isnan(high_gradient_ratio(gradient, torch.zeros(2, 2, 2).bool())[0])
    gradient[0, 0, 0] = math.inf
    assert math.isnan(high_gradient_ratio(gradient, top)[0])
    assert float(high_gradient_ratio(gradient, top)[1]) == 0


def test_normalisations():
    gradient = torch.full((1, 10, 10), 2.0)
    gradient[0, 0, 0] = 200.0  # one bright pixel dwarfs the rest
    rest = torch.ones(1, 10, 10).bool()
    rest[0, 0, 0] = False
    assert float(high_gradient_ratio(gradient, rest)) == 0
    # The 99th percentile of 100 values lies a hundredth of the way from the second largest to the largest.
    scale = 2 + 0.01 * 198
    found = normalized_gradient(gradient, "percentile")[rest]
    torch.testing.assert_close(found, torch.full((99,), 2 / scale), rtol=1e-4, atol=0)
    assert float(high_gradient_ratio(gradient, rest, normalise="percentile")) == 1
    assert float(high_gradient_ratio(gradient, rest, 1.5, "none")) == 1
    assert float(high_gradient_ratio(gradient, rest, 2.5, "none")) == 0


def test_channels_are_averaged_and_signs_dropped():
    gradient = torch.tensor([1.0, -3.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert gradient_map(gradient).tolist() == [[[2.0, 2.0], [2.0, 2.0]]]


def test_smoothing_is_a_gaussian():
    point = torch.zeros(1, 21, 21)
    point[0, 10, 10] = 1
    smooth = gradient_map(point, sigma=1.0)[0]
    assert float(smooth.sum()) == pytest.approx(1)
    assert float(smooth[10, 11] / smooth[10, 10]) == pytest.approx(math.exp(-0.5))
    assert float(smooth[12, 11] / smooth[10, 10]) == pytest.approx(math.exp(-2.5))
    flat = torch.full((1, 8, 8), 3.0)
    torch.testing.assert_close(gradient_map(flat, sigma=2.0), flat)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normalise": "mean"}, "normalise"),
        ({"sigma": -1.0}, "sigma"),
        ({"region": torch.ones(1, 3, 3)}, "region"),
    ],
)
def test_ratio_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        high_gradient_ratio(torch.ones(1, 2, 2), arguments.pop("region", torch.ones(1, 2, 2)), **arguments)


def test_saturation():
    logits = torch.tensor([[0.0, 20.0], [-20.0, 0.5], [float("nan"), 0.0]])
    assert saturation(logits) == pytest.approx(3 / 6)
    labels = torch.tensor([[1, 0], [1, 0], [0, 1]])
    assert saturation(logits, labels=labels) == pytest.approx(1 / 3)
    assert saturation(logits[:2], last_activation("none")) == 0
    assert saturation(torch.tensor([[-5.0, 5.0]]), last_activation("relu")) == 0.5


def test_slopes_of_the_activations():
    point = torch.tensor([0.5])
    expected = {
        "sigmoid": 0.2350037,
        "tanh": 0.7864477,
        "softsign": 1 / 1.5**2,
        "none": 1,
        "relu": 1,
        "elu": 1,
    }
    assert set(expected) == set(ACTIVATIONS)
    for name, value in expected.items():
        assert float(slope(last_activation(name), point)) == pytest.approx(value, rel=1e-5)
    with pytest.raises(ConfigError, match="softsign"):
        last_activation("gelu")


def test_information():
    labels = torch.arange(8) % 2
    assert binned_information(torch.zeros(8, 3), labels) == (0.0, 0.0)
    unique = binned_information(torch.arange(8.0)[:, None], labels, bins=8)
    assert unique.input == pytest.approx(3)
    assert unique.label == pytest.approx(1)
    # The first bit of the index says nothing of the last one, which is the label.
    blind = binned_information((torch.arange(8) // 4).float()[:, None], labels, bins=2)
    assert blind.input == pytest.approx(1)
    assert blind.label == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="finite"):
        binned_information(torch.full((2, 1), math.nan), labels[:2])


def paper_rib(net, **kwargs):
    settings = {"steps": 3, "lr": 1e-2, "head_lr_factor": 1.0, "margin": None, "area_limit": None}
    settings |= {"preset": "paper", "loss_views": (0,)} | kwargs
    return ribseg.RIB(net, ribseg.GAP(), **settings)


def test_adapting_keeps_the_weights_inside_and_restores_them(net, images):
    views, labels = [images[:1].expand(2, 3, -1, -1)], LABELS[0]
    rib = paper_rib(net, steps=1, weight_decay=0.0, momentum=0.0)
    before = net.weight.detach().clone()
    expected = before.clone()
    # One step: the gradient of -2 y_0 (two equal rows) with respect to row 0 is -2 * mean feature.
    expected[0] += 1e-2 * 2 * net.features(images[:1]).mean((-2, -1))[0].detach()
    with rib.adapting(views, labels) as result:
        torch.testing.assert_close(net.weight.detach(), expected)
    assert torch.equal(net.weight, before)
    assert all(torch.equal(a, b) for a, b in zip(result.maps, rib(views, labels).maps, strict=True))
    with pytest.raises(KeyError), rib.adapting(views, labels):
        raise KeyError
    assert torch.equal(net.weight, before)
    with rib.adapting(views, torch.zeros(2)) as empty:
        assert len(empty.classes) == 0


def test_before_and_after_rib(net, images):
    views = [images[:1].expand(2, 3, -1, -1)]
    layers = list(net.layers)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    found = gradients_before_and_after(paper_rib(net), views, LABELS[0], layers)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert (found.steps, found.stopped, len(found.before), len(found.after)) == (3, None, 4, 4)
    assert found.before[-1].shape == (1, 3, 16, 16)
    with paper_rib(net).adapting(views, LABELS[0]):
        expected = gradient_stack(net, views[0][:1], LABELS[:1], layers)
    assert all(torch.equal(a, b) for a, b in zip(found.after, expected, strict=True))
    assert not torch.equal(found.before[-1], found.after[-1])
    still = gradients_before_and_after(paper_rib(net, steps=0), views, LABELS[0], layers)
    assert all(torch.equal(a, b) for a, b in zip(still.before, still.after, strict=True))


def test_an_activation_behind_the_pooling():
    maps = torch.full((1, 2, 3, 3), 2.0)
    assert Activated(ribseg.GAP(), "tanh")(maps, torch.ones(1, 2)).tolist()[0][0] == pytest.approx(
        math.tanh(2)
    )
    assert "sigmoid" in repr(Activated(ribseg.GNDRP(0.3), "sigmoid"))


def test_losses_of_the_toy_training():
    logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert float(cross_entropy(logits, labels)) == pytest.approx(expected)
    assert float(squared_error(logits, labels, "none")) == pytest.approx((1 + 1) / 2)
    squared = ((math.tanh(2) - 1) ** 2 + (math.tanh(-1) + 1) ** 2) / 2
    assert float(squared_error(logits, labels, "tanh")) == pytest.approx(squared)
    assert float(rib_loss(logits, labels)) == -2
    assert float(signed_rib_loss(logits, labels)) == -3
    assert float(signed_rib_loss(logits, labels, margin=1.5)) == -2.5


def record(mark_before, mark_after):
    flat = {name: [1.0, 0.05, 0.05] for name in REGIONS}
    before = flat | {"discriminative": [1.0, 0.9, 0.5], "non_discriminative": mark_before}
    return {"before": before, "after": flat | {"non_discriminative": mark_after}}


def test_means_and_deviations():
    summary = summarize_seeds(
        [record([1.0, 0.8, 0.2], [1.0, 0.9, 0.6]), record([1.0, 1.0, 0.4], [1.0, 0.9, None])]
    )
    assert summary["seeds"] == 2
    assert summary["before"]["non_discriminative"] == pytest.approx([1.0, 0.9, 0.3])
    assert summary["std"]["before"]["non_discriminative"] == pytest.approx([0, 0.2 / 2**0.5, 0.2 / 2**0.5])
    assert summary["after"]["non_discriminative"][-1] == pytest.approx(0.6)
    assert summary["std"]["after"]["non_discriminative"][-1] == 0
