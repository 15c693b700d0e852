"""The convolution whose weight gradient is made of matrix products."""

import pytest
import torch
from torch.nn import functional as F

from ribseg.kernels.convolution import conv2d, weight_gradient

CASES = {
    "one place": (1, {}),
    "one place, strided": (1, {"stride": (2, 2)}),
    "three": (3, {"padding": (1, 1)}),
    "not padded": (3, {}),
    "strided": (3, {"stride": (2, 2), "padding": (1, 1)}),
    "dilated": (3, {"padding": (2, 2), "dilation": (2, 2)}),
    "sides differ": ((3, 5), {"stride": (1, 2), "padding": (0, 3), "dilation": (3, 1)}),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(13, 18), (7, 7)])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_library(case, size, layout):
    torch.manual_seed(0)
    kernel, settings = CASES[case]
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    x = torch.randn(2, 4, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn(6, 4, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    ours, theirs = conv2d(x, weight, bias, **settings), F.conv2d(x, weight, bias, **settings)
    assert torch.equal(ours, theirs)
    assert ours.is_contiguous(memory_format=layout)
    outward = torch.randn_like(ours)
    expected = torch.autograd.grad(theirs, (x, weight, bias), outward)
    actual = torch.autograd.grad(ours, (x, weight, bias), outward)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert actual[0].is_contiguous(memory_format=layout)


def test_computes_only_what_is_wanted(monkeypatch):
    called = []
    monkeypatch.setattr(
        "ribseg.kernels.convolution.weight_gradient",
        lambda *args: called.append(args) or weight_gradient(*args),
    )
    x, weight = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(3, 2, 3, 3)
    conv2d(x, weight).sum().backward()
    assert not called
    x, weight = x.detach(), weight.requires_grad_()
    conv2d(x, weight).sum().backward()
    assert len(called) == 1
    assert x.grad is None
    assert weight.grad is not None


def test_cannot_be_differentiated_twice():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(conv2d(x, weight).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
