"""Depthwise convolutions with a faster backward pass on a CPU."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

SMALLEST_KERNEL = 5  # for 3 x 3 torch's own gradient is as fast or faster


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with stride 1 and the output size of its input."""

    @staticmethod
    def forward(images: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        return F.conv2d(images, weight, padding=padding, groups=len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        images, weight, ctx.padding = inputs
        ctx.save_for_backward(images, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        images, weight = ctx.saved_tensors
        image_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:  # a convolution with the mirrored kernel, as the sizes are equal
            kernel = weight.flip(-2, -1).to(gradient.dtype)
            image_gradient = F.conv2d(gradient, kernel, padding=ctx.padding, groups=len(weight))
            image_gradient = image_gradient.to(images.dtype)
        if ctx.needs_input_grad[1]:
            weight_gradient = _weight_gradient(images, gradient, ctx.padding).to(weight.dtype)
        return image_gradient, weight_gradient, None


def _weight_gradient(images: Tensor, gradient: Tensor, padding: tuple[int, int]) -> Tensor:
    """(C, 1, k, k): correlation of the output's gradient with the shifted input, for each channel.

    Computed as a depthwise convolution of each channel of each image, with its gradient as the kernel. The
    gradient of oneDNN takes 2 to 12 times as long for kernels of 5 and more and small batches, as in RIB.
    """
    number, channels, height, width = images.shape
    rows = images.to(gradient.dtype).reshape(1, number * channels, height, width)
    kernels = gradient.reshape(number * channels, 1, height, width)
    found = F.conv2d(rows, kernels, padding=padding, groups=number * channels)
    exact = torch.promote_types(found.dtype, torch.float32)
    return found.view(number, channels, 1, *found.shape[-2:]).sum(0, dtype=exact)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d` with faster gradients on a CPU.

    Outputs are equal to the bit, gradients up to rounding. Shares its parameters with the layer it replaces.

    Args:
        conv: a layer for which `replaceable` is true.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        size = cast(tuple[int, int], conv.kernel_size)
        padding = (size[0] // 2, size[1] // 2)
        super().__init__(
            conv.in_channels, conv.out_channels, size, padding=padding, groups=conv.groups, bias=False,
            device="meta",
        )  # fmt: skip
        self.weight = conv.weight

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        learns = torch.is_grad_enabled() and (self.weight.requires_grad or images.requires_grad)
        if not learns or images.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(images)
        return cast(Tensor, _Depthwise.apply(images, self.weight, self.padding))


def replaceable(module: nn.Module) -> bool:
    """Whether `DepthwiseConv2d` can replace a module: a depthwise convolution of stride 1 and same size."""
    if type(module) not in (nn.Conv2d, Conv2dSame):
        return False
    conv = cast(nn.Conv2d, module)
    size = cast(tuple[int, int], conv.kernel_size)
    same_size = (size[0] // 2, size[1] // 2)
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and min(size) >= SMALLEST_KERNEL
        and all(side % 2 for side in size)
        and conv.stride == conv.dilation == (1, 1)
        and conv.bias is None
        and (type(conv) is Conv2dSame or conv.padding == same_size)
        and conv.padding_mode == "zeros"
    )


def replace_depthwise(module: nn.Module) -> None:
    """Replaces every `replaceable` convolution by a `DepthwiseConv2d`, in place."""
    for name, child in module.named_children():
        if replaceable(child):
            setattr(module, name, DepthwiseConv2d(cast(nn.Conv2d, child)))
        else:
            replace_depthwise(child)
