"""Depthwise convolutions: equal outputs and gradients, put where they compute the same, nowhere else."""

import copy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from ribseg.models.backbone import Backbone
from ribseg.models.depthwise import DepthwiseConv2d, replace_depthwise, replaceable


def depthwise(kernel=5, **settings):
    settings = {"padding": kernel // 2, "groups": 6, "bias": False} | settings
    return nn.Conv2d(6, 6, kernel, **settings)


def pair(dtype, kernel=5):
    torch.manual_seed(0)
    plain = depthwise(kernel).to(dtype)
    return plain, DepthwiseConv2d(copy.deepcopy(plain))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [5, 7])
def test_outputs_and_gradients_are_those_of_the_convolution(kernel, layout):
    plain, ours = pair(torch.float64, kernel)
    images = torch.randn(3, 6, 7, 9, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weights = torch.randn(3, 6, 7, 9, dtype=torch.float64)
    assert torch.equal(plain(images), ours(images))
    expected = torch.autograd.grad((plain(images) * weights).sum(), [images, plain.weight])
    found = torch.autograd.grad((ours(images) * weights).sum(), [images, ours.weight])
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    few = torch.randn(1, 6, 4, 5, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(ours, few)


def test_half_precision_sums_in_single():
    plain, ours = pair(torch.float32)
    images = torch.randn(2, 6, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(ours(images).float().square().sum(), [ours.weight])[0]
        expected = torch.autograd.grad(plain(images).float().square().sum(), [plain.weight])[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


def test_parameters_are_shared_and_keep_their_names():
    network = nn.Sequential(nn.Conv2d(3, 6, 1), depthwise())
    names, weight = list(network.state_dict()), network[1].weight
    replace_depthwise(network)
    assert isinstance(network[1], DepthwiseConv2d)
    assert network[1].weight is weight
    assert list(network.state_dict()) == names


@pytest.mark.parametrize(
    "conv",
    [
        depthwise(3),
        depthwise(stride=2),
        depthwise(padding=0),
        depthwise(dilation=2),
        depthwise(bias=True),
        depthwise(groups=3),
        depthwise(padding_mode="reflect"),
        Conv2dSame(6, 6, 5, stride=2, groups=6, bias=False),
        nn.Linear(6, 6),
    ],
)
def test_what_it_does_not_compute_stays(conv):
    assert not replaceable(conv)


def test_a_stride_that_was_removed_is_covered():
    """tf_efficientnet pads the strided convolutions by itself; without stride they are ordinary ones."""
    backbone = Backbone("tf_efficientnet_lite0", output_stride=16).eval()
    found = [module for module in backbone.modules() if isinstance(module, DepthwiseConv2d)]
    assert len(found) > 5
    assert not any(replaceable(module) for module in backbone.modules())
