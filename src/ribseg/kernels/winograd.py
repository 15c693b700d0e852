"""Convolutions of 3 x 3 with a quarter of the multiplications: Winograd's minimal filtering, for CPUs."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE, OVERLAP = 4, 2  # pixels of a result that are made at once, and what their sources share with the next
SIDE = TILE + OVERLAP
PLACES = SIDE**2
KERNEL = 3

# Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016), section 4.3, F(4x4, 3x3). A
# Kronecker product transforms rows and columns at once.
_EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
_SOURCE = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    **_EXACT,
)
_WEIGHT = (
    torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], **_EXACT) / 24
)
_RESULT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], **_EXACT
)
_MATRICES = {
    dtype: tuple(torch.kron(matrix, matrix).to(dtype) for matrix in (_SOURCE, _WEIGHT, _RESULT))
    for dtype in (torch.float32, torch.float64)
}
DTYPES = tuple(_MATRICES)
BLOCK = 2**14  # columns of a weight that are transformed at once, so that they stay in a processor's cache


class Weight:
    """The transformed weight of a convolution, and the gradient that gathers there from its passes.

    Both keep their memory for the next weight: they are large, and fresh memory costs more time than the
    transformation.

    >>> weight, kernel = Weight(), torch.rand(3, 2, 3, 3, requires_grad=True)
    >>> x, bias = torch.rand(1, 2, 5, 7), torch.rand(3)
    >>> weight.set(kernel)
    >>> conv2d(x, weight, bias).sum().backward()
    >>> weight.gradient().shape
    torch.Size([3, 2, 3, 3])
    """

    def __init__(self) -> None:
        self.transformed = torch.empty(0, device="cpu")  # (36, D', D)
        self._gradient = torch.empty(0, device="cpu")
        self._reached = False

    @torch.no_grad()
    def set(self, weight: Tensor) -> None:
        """Takes (D', D, 3, 3) float32 or float64, as it is now; its gradient starts anew."""
        _, matrix, _ = _MATRICES[weight.dtype]
        memory = _fitting(self.transformed.detach(), (PLACES, *weight.shape[:2]), weight.dtype)
        flat = weight.detach().permute(2, 3, 0, 1).reshape(KERNEL**2, -1)
        for part, place in zip(flat.split(BLOCK, 1), memory.view(PLACES, -1).split(BLOCK, 1), strict=True):
            torch.mm(matrix, part, out=place)
        self.transformed = memory.requires_grad_(weight.requires_grad)
        self._reached = False

    def add_gradient(self, sources: Tensor, outward: Tensor) -> None:
        """Adds a pass's: the products over all tiles of (36, T, D) and (36, T, D')."""
        self._gradient = _fitting(self._gradient, self.transformed.shape, sources.dtype)
        torch.baddbmm(self._gradient, outward.mT, sources, beta=float(self._reached), out=self._gradient)
        self._reached = True

    def gradient(self) -> Tensor | None:
        """(D', D, 3, 3), of the weight as it was set; None if no pass has reached it."""
        if not self._reached:
            return None
        _, matrix, _ = _MATRICES[self._gradient.dtype]
        flat = matrix.t() @ self._gradient.view(PLACES, -1)
        return flat.view(KERNEL, KERNEL, *self.transformed.shape[1:]).permute(2, 3, 0, 1)


def conv2d(x: Tensor, weight: Weight, bias: Tensor) -> Tensor:
    """A 3 x 3 convolution, stride 1, padded by 1 with zeros.

    Tiles of the image and the kernel are brought, each by a linear map, to where a convolution is 36 products
    for 16 pixels, not 144; over the channels these are matrix products, which CPUs are good at. With 128
    channels or more it takes about half the time of the libraries' kernels, forward and backward. It computes
    the same, but rounds otherwise: in single precision up to 1e-5 of the largest value.

    Args:
        x: (N, D, h, w) float32 or float64, on a CPU.
        weight: of (D', D, 3, 3), where its gradient is gathered, too.
        bias: (D',).

    Returns:
        (N, D', h, w) in the channels-last layout. It can be differentiated once.

    >>> x, kernel, bias = torch.rand(1, 2, 5, 7), torch.rand(3, 2, 3, 3), torch.rand(3)
    >>> weight = Weight()
    >>> weight.set(kernel)
    >>> torch.allclose(conv2d(x, weight, bias), F.conv2d(x, kernel, bias, padding=1), atol=1e-4)
    True
    """
    result: Tensor = _Conv2d.apply(x, weight.transformed, bias, weight)
    return result


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, transformed: Tensor, bias: Tensor, weight: Weight) -> Tensor:
        matrix, _, back = _MATRICES[x.dtype]
        count, channels, height, width = x.shape
        rows, columns = _tiles(height, width)
        sources = x.new_empty(PLACES, count, rows * columns * channels)
        # Image by image, so that what lies between stays in the cache.
        for image, place in zip(x.permute(0, 2, 3, 1), sources.unbind(1), strict=True):
            torch.mm(matrix, _squares(image), out=place)
        sources = sources.view(PLACES, count * rows * columns, channels)
        products = torch.bmm(sources, transformed.mT).view(PLACES, count, rows * columns * len(bias))
        ctx.save_for_backward(sources, transformed)
        ctx.weight, ctx.size = weight, x.shape
        size = count, len(bias), height, width
        # No view: what comes next may change it in place.
        result = torch.empty(size, dtype=x.dtype, device="cpu", memory_format=torch.channels_last)
        for product, place in zip(products.unbind(1), result.permute(0, 2, 3, 1), strict=True):
            tiles = (back @ product).view(TILE, TILE, rows, columns, -1).permute(2, 0, 3, 1, 4)
            whole = tiles.reshape(TILE * rows, TILE * columns, -1)
            torch.add(whole[:height, :width], bias, out=place)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sources, transformed = ctx.saved_tensors
        matrix, _, back = _MATRICES[grad.dtype]
        count, channels, height, width = ctx.size
        rows, columns = _tiles(height, width)
        outward = grad.new_empty(PLACES, count, rows * columns * grad.shape[1])
        for image, place in zip(grad.permute(0, 2, 3, 1), outward.unbind(1), strict=True):
            torch.mm(back.t(), _cut(image), out=place)
        outward = outward.view(PLACES, count * rows * columns, grad.shape[1])
        of_x, of_bias = None, None
        if ctx.needs_input_grad[0]:
            inward = torch.bmm(outward, transformed).view(PLACES, count, rows * columns * channels)
            of_x = torch.empty(ctx.size, dtype=grad.dtype, device="cpu", memory_format=torch.channels_last)
            for squares, place in zip(inward.unbind(1), of_x.permute(0, 2, 3, 1), strict=True):
                place.copy_(_overlaid(matrix.t() @ squares, height, width))
        if ctx.needs_input_grad[1]:
            ctx.weight.add_gradient(sources, outward)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3))
        return of_x, None, of_bias, None


def _squares(image: Tensor) -> Tensor:
    """(h, w, D) -> (36, rows * columns * D): the overlapping squares that the tiles are made of."""
    height, width, _ = image.shape
    rows, columns = _tiles(height, width)
    padded = F.pad(image, (0, 0, 1, TILE * columns + 1 - width, 1, TILE * rows + 1 - height))
    return padded.unfold(0, SIDE, TILE).unfold(1, SIDE, TILE).permute(3, 4, 0, 1, 2).reshape(PLACES, -1)


def _cut(grad: Tensor) -> Tensor:
    """(h, w, D') -> (16, rows * columns * D'): the tiles of a result, side by side, no overlap."""
    height, width, channels = grad.shape
    rows, columns = _tiles(height, width)
    padded = F.pad(grad, (0, 0, 0, TILE * columns - width, 0, TILE * rows - height))
    tiles = padded.reshape(rows, TILE, columns, TILE, channels)
    return tiles.permute(1, 3, 0, 2, 4).reshape(TILE**2, -1)


def _overlaid(squares: Tensor, height: int, width: int) -> Tensor:
    """The adjoint of `_squares`: sums the squares where they overlap."""
    rows, columns = _tiles(height, width)
    squares = squares.view(SIDE, SIDE, rows, columns, -1).permute(2, 0, 3, 1, 4)
    whole = squares.new_zeros(rows + 1, TILE, columns + 1, TILE, squares.shape[-1])
    whole[:rows, :, :columns] = squares[:, :TILE, :, :TILE]
    whole[1:, :OVERLAP, :columns] += squares[:, TILE:, :, :TILE]
    whole[:rows, :, 1:, :OVERLAP] += squares[:, :TILE, :, TILE:]
    whole[1:, :OVERLAP, 1:, :OVERLAP] += squares[:, TILE:, :, TILE:]
    whole = whole.view(TILE * (rows + 1), TILE * (columns + 1), -1)
    return whole[1 : height + 1, 1 : width + 1]


def _fitting(memory: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The memory, if it is of this shape and type; else new memory."""
    fits = memory.shape == torch.Size(shape) and memory.dtype == dtype
    return memory if fits else torch.empty(shape, dtype=dtype, device="cpu")


def _tiles(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tiles that cover an image."""
    return -(-height // TILE), -(-width // TILE)
