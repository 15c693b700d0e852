"""A convolution whose weight gradient is made of matrix products: what CPUs are slow at otherwise."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Pair = tuple[int, ...]  # rows, columns


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> Tensor:
    """`torch.nn.functional.conv2d` of one group, whose gradients cost less on a CPU.

    For activations in the channels-last layout the libraries' kernels for the gradient of the weight run far
    below the rest of a convolution. As one matrix product for each place of the kernel it runs as fast as
    matrix products do, and needs room for one shifted copy of `x`. Gradients differ by rounding.

    Args:
        x: (N, D, h, w).
        weight: (D', D, kh, kw).
        bias: (D',).
        stride: rows, columns.
        padding: with zeros, rows and columns.
        dilation: rows, columns.

    Returns:
        (N, D', h', w'). It can be differentiated once.

    >>> x, weight = torch.rand(1, 2, 5, 5), torch.rand(3, 2, 3, 3, requires_grad=True)
    >>> conv2d(x, weight, padding=(1, 1)).shape
    torch.Size([1, 3, 5, 5])
    """
    result: Tensor = _Conv2d.apply(x, weight, bias, stride, padding, dilation)
    return result


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.places = stride, padding, dilation
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (stride, padding, dilation) = ctx.saved_tensors, ctx.places
        of_x, of_weight, of_bias = None, None, None
        if ctx.needs_input_grad[0]:
            of_x, _, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, stride, padding, dilation, False, (0, 0), 1, (True, False, False)
            )
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(x, grad, weight.shape[-2:], stride, padding, dilation)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None, None


def weight_gradient(
    x: Tensor, grad: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The gradient of a convolution's weight, as one matrix product for each place of its kernel.

    Args:
        x: (N, D, h, w), what was convolved.
        grad: (N, D', h', w'), the gradient of the result.
        kernel: its rows and columns, kh and kw.
        stride: see `conv2d`.
        padding: see `conv2d`.
        dilation: see `conv2d`.

    Returns:
        (D', D, kh, kw).
    """
    rows, columns = grad.shape[-2:]
    outward = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1]).t()
    inward = x.permute(0, 2, 3, 1)
    if any(padding):
        inward = F.pad(inward, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    found = grad.new_empty(*kernel, grad.shape[1], x.shape[1])
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            seen = inward[:, top :: stride[0], left :: stride[1]][:, :rows, :columns]
            torch.mm(outward, seen.reshape(-1, x.shape[1]), out=found[i, j])
    return found.permute(2, 3, 0, 1)
