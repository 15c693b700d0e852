"""Winograd's convolutions: the same as the library's, forward and backward, in memory that is used again."""

import pytest
import torch
from torch.nn import functional as F

from ribseg.kernels.winograd import Weight, conv2d


def example(size, channels=(3, 5), count=2, dtype=torch.float64, layout=torch.channels_last):
    torch.manual_seed(0)
    x = torch.randn(count, channels[0], *size, dtype=dtype).to(memory_format=layout).requires_grad_()
    kernel = torch.randn(channels[1], channels[0], 3, 3, dtype=dtype, requires_grad=True)
    bias = torch.randn(channels[1], dtype=dtype, requires_grad=True)
    return x, kernel, bias


def of(kernel):
    weight = Weight()
    weight.set(kernel)
    return weight


# Sides of whole tiles, of a part of one, of one pixel, and of a whole and a part.
SIZES = [(8, 4), (3, 2), (1, 1), (9, 7), (4, 13)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_library(size, layout):
    x, kernel, bias = example(size, layout=layout)
    weight = of(kernel)
    ours, theirs = conv2d(x, weight, bias), F.conv2d(x, kernel, bias, padding=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    outward = torch.randn_like(theirs)
    expected = torch.autograd.grad(theirs, (x, kernel, bias), outward)
    actual = torch.autograd.grad(ours, (x, bias), outward)
    for one, other in zip((actual[0], weight.gradient(), actual[1]), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_rounds_little_in_single_precision():
    x, kernel, bias = example((24, 32), (256, 256), dtype=torch.float32)
    x, weight = x.detach().relu().requires_grad_(), of(kernel)
    ours = conv2d(x, weight, bias)
    exact = F.conv2d(x.double(), kernel.double(), bias.double(), padding=1)
    outward = torch.randn_like(exact)
    expected = exact, *torch.autograd.grad(exact, (x, kernel), outward)
    (of_x,) = torch.autograd.grad(ours, x, outward.float())
    for one, other in zip((ours, of_x, weight.gradient()), expected, strict=True):
        one, other = one.detach(), other.detach()
        assert float((one - other).abs().max()) <= 2e-5 * float(other.abs().max())


def test_gradients_of_several_passes_are_summed_until_the_next_weight():
    x, kernel, bias = example((5, 6))
    weight = of(kernel)
    assert weight.gradient() is None
    conv2d(x, weight, bias).sum().backward()
    once = weight.gradient()
    conv2d(x, weight, bias).sum().backward()
    torch.testing.assert_close(weight.gradient(), 2 * once)
    weight.set(2 * kernel)
    assert weight.gradient() is None
    torch.testing.assert_close(conv2d(x, weight, bias), F.conv2d(x, 2 * kernel, bias, padding=1))
    conv2d(x, weight, bias).sum().backward()
    torch.testing.assert_close(weight.gradient(), once)


def test_memory_is_used_again_where_it_fits():
    _, kernel, _ = example((1, 1))
    weight = of(kernel)
    place = weight.transformed.data_ptr()
    weight.set(3 * kernel)
    assert weight.transformed.data_ptr() == place
    x, other, bias = example((5, 6), (4, 2), dtype=torch.float32)
    weight.set(other)
    torch.testing.assert_close(
        conv2d(x, weight, bias), F.conv2d(x, other, bias, padding=1), rtol=1e-4, atol=1e-4
    )


def test_computes_only_what_is_wanted():
    x, kernel, bias = example((5, 6))
    weight = of(kernel.detach())
    conv2d(x, weight, bias.detach()).sum().backward()
    assert x.grad is not None
    assert weight.gradient() is None
    weight, x = of(kernel), x.detach()
    conv2d(x, weight, bias).sum().backward()
    assert weight.gradient() is not None
    assert x.grad is None
    with torch.no_grad():
        assert not conv2d(x, weight, bias).requires_grad


def test_of_no_image():
    x, kernel, bias = example((5, 6), count=0)
    weight = of(kernel)
    found = conv2d(x, weight, bias)
    assert found.shape == (0, 5, 5, 6)
    found.sum().backward()
    assert not weight.gradient().any()


def test_stays_on_the_cpu():
    x, kernel, bias = example((5, 6))
    expected = F.conv2d(x, kernel, bias, padding=1)
    with torch.device("meta"):
        found = conv2d(x, of(kernel), bias)
        found.sum().backward()
    torch.testing.assert_close(found, expected)


def test_its_result_can_be_changed_in_place():
    x, kernel, bias = example((5, 6))
    expected = torch.autograd.grad(F.conv2d(x, kernel, bias, padding=1).relu().sum(), x)
    actual = torch.autograd.grad(conv2d(x, of(kernel), bias).relu_().sum(), x)
    torch.testing.assert_close(actual, expected)


def test_cannot_be_differentiated_twice():
    x, kernel, bias = example((5, 6))
    (grad,) = torch.autograd.grad(conv2d(x, of(kernel), bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
