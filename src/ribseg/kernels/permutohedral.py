"""Gaussian filtering of points in a few dimensions on the permutohedral lattice.

Adams, Baek, Davis: Fast High-Dimensional Filtering Using the Permutohedral Lattice, Eurographics 2010. Each
point distributes its value to the d + 1 vertices of the lattice simplex around it (splat), the vertices are
blurred along the d + 1 axes of the lattice with (1/2, 1, 1/2), and interpolated at the points (slice).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_KEY = 2**62


class PermutohedralLattice:
    """A Gaussian filter of unit standard deviation over n points.

    Args:
        features: (n, d) float, the points' positions divided by the standard deviations; n >= 1.

    Raises:
        ValueError: wrong shape, or points too far apart for integer vertex keys.
    """

    def __init__(self, features: Tensor) -> None:
        if features.ndim != 2 or 0 in features.shape:
            raise ValueError(f"expected features (n, d) of at least one point, got {tuple(features.shape)}")
        dimensions = features.shape[1]
        base, rank, self._weight = _simplices(features)
        keys, strides = _vertex_keys(base, rank)
        vertices, vertex = torch.unique(keys, return_inverse=True)
        self._vertex = vertex  # (n, d + 1): the vertices of each point's simplex
        # The inverse: the points of each vertex, in the order of the vertices.
        order = vertex.flatten().argsort(stable=True)
        self._point = order // (dimensions + 1)
        self._point_weight = self._weight.flatten()[order]
        counts = torch.bincount(vertex.flatten(), minlength=len(vertices))
        self._start = counts.cumsum(0) - counts
        self._neighbours = [_along_axis(vertices, strides, axis) for axis in range(dimensions + 1)]
        self._scale = 1 / (1 + 2.0**-dimensions)

    def __call__(self, values: Tensor) -> Tensor:
        """Filters (n, K) float32 values; not normalized: the weights of a point do not sum to one."""
        # embedding_bag sums weighted rows without copying them first.
        blurred = F.embedding_bag(
            self._point, values, self._start, mode="sum", per_sample_weights=self._point_weight
        )
        for first, second in self._neighbours:
            padded = torch.cat([blurred, blurred.new_zeros(1, blurred.shape[1])])
            blurred = blurred + 0.5 * (padded[first] + padded[second])
        sliced = F.embedding_bag(self._vertex, blurred, mode="sum", per_sample_weights=self._weight)
        return sliced * self._scale


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each point's simplex: first vertex, order of the axes, barycentric weights; (n, d + 1) each."""
    size = features.shape[1] + 1
    elevated = _elevate(features.to(torch.float64))
    near = (elevated / size).round()
    base = (near * size).to(torch.int64)
    rank = (elevated - base).argsort(stable=True, dim=1, descending=True).argsort(dim=1)
    # Rounding may leave the plane of coordinate sum zero: step back along the extreme axes.
    rank = rank + near.sum(1, keepdim=True).to(torch.int64)
    shift = (rank < 0).to(torch.int64) - (rank >= size).to(torch.int64)
    base, rank = base + shift * size, rank + shift * size
    rest = (elevated - base) / size
    weight = rest.new_zeros(len(rest), size + 1)
    weight.scatter_add_(1, size - 1 - rank, rest).scatter_add_(1, size - rank, -rest)
    weight[:, 0] += 1 + weight[:, size]
    return base, rank, weight[:, :size].to(features.dtype).contiguous()


def _elevate(features: Tensor) -> Tensor:
    """(n, d) -> (n, d + 1) coordinates in the hyperplane of sum zero, where the blur has the right width."""
    dimensions = features.shape[1]
    axis = torch.arange(1, dimensions + 1, dtype=features.dtype, device=features.device)
    spread = (dimensions + 1) * (2 / 3) ** 0.5
    scaled = features * spread / (axis * (axis + 1)).sqrt()
    suffix = scaled.flip(1).cumsum(1).flip(1)  # sum over this and the later axes
    zero = scaled.new_zeros(len(scaled), 1)
    return torch.cat([suffix, zero], 1) - torch.cat([zero, axis * scaled], 1)


def _vertex_keys(base: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """One integer key per vertex of each simplex, (n, d + 1), and the strides (d,) of its coordinates.

    The last coordinate is redundant: all sum to zero.
    """
    size = base.shape[1]
    corner = torch.arange(size, device=base.device)[:, None]
    step = corner - size * (rank[:, None] > size - 1 - corner)
    vertices = (base[:, None] + step)[..., :-1]
    low = vertices.amin((0, 1)) - size  # room for the neighbours of the outermost
    extent = vertices.amax((0, 1)) + size + 1 - low
    if extent.to(torch.float64).prod() > MAX_KEY:
        raise ValueError(
            "the points are too far apart for their standard deviations; expected sxy and srgb of at least "
            "about 0.1 for photographs"
        )
    strides = torch.cat([extent.new_ones(1), extent[:-1].cumprod(0)])
    return ((vertices - low) * strides).sum(-1), strides


def _along_axis(vertices: Tensor, strides: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Indices of each vertex's two neighbours along an axis; `len(vertices)` where there is none."""
    step = -strides.sum()
    if axis < len(strides):
        step = step + (len(strides) + 1) * strides[axis]
    return _find(vertices, vertices + step), _find(vertices, vertices - step)


def _find(vertices: Tensor, wanted: Tensor) -> Tensor:
    place = torch.searchsorted(vertices, wanted).clamp(max=len(vertices) - 1)
    return torch.where(vertices[place] == wanted, place, len(vertices))
