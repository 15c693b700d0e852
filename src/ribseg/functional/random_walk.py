"""Random walk of localization maps over pixel affinities (IRN paper, section 4.3).

Equation and published settings: docs/method.md, section 5.3.

The transition matrix T = A D^-1 (A affinities with ones on the diagonal, D its column sums) is sparse and
applied as a stencil, and far fewer than `steps` times. With S = D^-1/2 A D^-1/2, whose eigenvalues are in
[-1, 1], `x T^n = x D^1/2 S^n D^-1/2`, and S^n is a short sum of Chebyshev polynomials of S: the k-th
coefficient is a binomial probability, negligible for k above a few times sqrt(n). Their recurrence is
numerically stable on [-1, 1], unlike that of monomials.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ribseg.checks import check_number
from ribseg.functional.guards import check_finite_maps
from ribseg.functional.irn import Offset, check_radius, line_points, neighbour_offsets

# Sum of the omitted coefficients. Times sqrt(h w 69), the largest factor of D^1/2 and D^-1/2, this is below
# 1e-5 for maps of up to 10^5 pixels.
TRUNCATION = 3e-9
# Smaller affinities are set to zero; this changes a value by less than 68 times as much per step.
NEGLIGIBLE = 1e-14
# Offset of a map as a fraction of its maximum, see _walk.
LIFT = 1e-20

Window = tuple[slice, slice]  # rows and columns
Neighbour = tuple[int, Tensor]  # offset in the flattened map, and one value per first pixel of a pair


def random_walk(
    maps: Tensor, boundary: Tensor, radius: int = 5, beta: float = 10.0, steps: int = 256
) -> Tensor:
    """Localization maps after a random walk: `(maps * (1 - boundary)) @ T^steps`.

    T is the column-normalised affinity matrix. The affinity of two pixels is `(1 - highest boundary on the
    line between them)^beta` (see `line_points`), that of a pixel with itself is 1. Computed in float64, to
    within 1e-5 of the dense product for maps of up to 1, on CPU or GPU.

    Args:
        maps: (..., K, h, w) float; K may be 0. The published program passes `cam^1.3` at stride 4.
        boundary: (..., h, w) float in [0, 1], with the same leading dimensions.
        radius: neighbours are nearer than this, in pixels.
        beta: exponent of the affinity, positive.
        steps: of the walk, at least 0.

    Returns:
        (..., K, h, w), dtype and device of the maps.

    Raises:
        ValueError: shapes do not match, the boundary is outside [0, 1], or an argument is out of range.

    >>> maps = torch.zeros(1, 4, 6); maps[0, 1, 1] = 1
    >>> wall = torch.zeros(4, 6); wall[:, 3] = 1
    >>> walked = random_walk(maps, wall)
    >>> bool((walked[0, :, :3] > 0.05).all()), bool((walked[0, :, 3:] < 1e-6).all())
    (True, True)
    """
    _check(maps, boundary, radius, beta, steps)
    boundary = boundary.to(torch.float64)
    start = (maps.to(torch.float64) * (1 - boundary).unsqueeze(-3)).flatten(-2)
    if start.numel() == 0:
        return maps.clone()
    return _walk(start, _affinities(boundary, radius, beta), steps).to(maps.dtype).view(maps.shape)


def feature_random_walk(
    maps: Tensor, features: Tensor, radius: int = 5, beta: float = 8.0, steps: int = 256
) -> Tensor:
    """Localization maps after a random walk over feature affinities (Ahn, Kwak, CVPR 2018, section 3.2).

    As `random_walk`, with `maps @ T^steps` and affinities `exp(-mean over channels of |f_i - f_j|)^beta`.

    Args:
        maps: (K, h, w) float; K may be 0.
        features: (D, h, w) float.
        radius: neighbours are nearer than this, in pixels.
        beta: exponent of the affinity, positive.
        steps: of the walk, at least 0.

    Returns:
        (K, h, w), dtype and device of the maps.

    Raises:
        ValueError: shapes do not match, or an argument is out of range.

    >>> maps = torch.zeros(1, 4, 6); maps[0, 1, 1] = 1
    >>> features = torch.zeros(2, 4, 6); features[:, :, 3:] = 9
    >>> walked = feature_random_walk(maps, features)
    >>> bool((walked[0, :, :3] > 0.05).all()), bool((walked[0, :, 3:] < 1e-6).all())
    (True, True)
    """
    if features.ndim != 3:
        raise ValueError(f"expected features (D, h, w), got {tuple(features.shape)}")
    _check(maps, features.new_zeros(features.shape[1:]), radius, beta, steps)
    if maps.numel() == 0:
        return maps.clone()
    affinities = _feature_affinities(features.to(torch.float64), radius, beta)
    walked = _walk(maps.to(torch.float64).flatten(-2), affinities, steps)
    return walked.to(maps.dtype).view(maps.shape)


def _walk(start: Tensor, affinities: list[Neighbour], steps: int) -> Tensor:
    """(..., K, n) values after the walk."""
    neighbours, degree = _transition(affinities, start[..., 0, :])
    root = degree.sqrt().unsqueeze(-2)
    # The walk keeps a constant offset. It avoids denormal numbers, on which a CPU is a hundred times slower.
    lifted = start + LIFT * start.abs().amax(-1, keepdim=True)
    walked = _power(neighbours, (1 / degree).unsqueeze(-2), lifted * root, steps) / root
    # Each value is a weighted mean; the truncation error must not move it out of the input's range.
    return walked.clamp(start.amin(-1, keepdim=True), start.amax(-1, keepdim=True))


def _check(maps: Tensor, boundary: Tensor, radius: int, beta: float, steps: int) -> None:
    if maps.ndim < 3 or boundary.shape != (*maps.shape[:-3], *maps.shape[-2:]):
        raise ValueError(
            f"expected maps (..., K, h, w) and boundary (..., h, w), got {tuple(maps.shape)} and "
            f"{tuple(boundary.shape)}; bring both to the same stride"
        )
    if not maps.is_floating_point() or not boundary.is_floating_point():
        raise ValueError(f"expected float tensors, got {maps.dtype} and {boundary.dtype}")
    if boundary.numel() and not bool(((boundary >= 0) & (boundary <= 1)).all()):
        raise ValueError("expected a boundary in [0, 1]; apply a sigmoid to IRNet's boundary logits")
    check_finite_maps(maps)
    check_walk_arguments(radius, beta, steps)


def check_walk_arguments(radius: int, beta: float, steps: int) -> None:
    """Raises a ConfigError unless the settings of `random_walk` are in range."""
    check_radius(radius)
    check_number("beta", beta, above=0)
    check_number("steps", steps, low=0, whole=True)


def _affinities(boundary: Tensor, radius: int, beta: float) -> list[Neighbour]:
    """The affinities (..., n - offset) to each neighbour, zero where it is outside the image."""

    def affinity(offset: Offset, first: Window, second: Window) -> Tensor:
        top, left = first
        highest = boundary[..., top, left]
        for y, x in line_points(offset):
            highest = torch.maximum(highest, boundary[..., _moved(top, y), _moved(left, x)])
        return (1 - highest) ** beta

    return _stencil(affinity, boundary, radius)


def _feature_affinities(features: Tensor, radius: int, beta: float) -> list[Neighbour]:
    """As `_affinities`, from features (D, h, w)."""

    def affinity(offset: Offset, first: Window, second: Window) -> Tensor:
        difference = features[..., first[0], first[1]] - features[..., second[0], second[1]]
        return torch.exp(-beta * difference.abs().mean(0))

    return _stencil(affinity, features[0], radius)


def _stencil(
    affinity: Callable[[Offset, Window, Window], Tensor], like: Tensor, radius: int
) -> list[Neighbour]:
    """The affinities of all pairs inside the image, one entry per neighbour.

    Args:
        affinity: computes them from an offset and the windows of the first and second pixels of its pairs.
        like: (..., h, w).
        radius: see `random_walk`.
    """
    height, width = like.shape[-2:]
    stencil = []
    for offset in neighbour_offsets(radius):
        dy, dx = offset
        rows, left, right = height - dy, max(0, -dx), width - max(0, dx)
        if rows < 1 or right <= left:
            continue  # the map is smaller than the offset
        first = slice(0, rows), slice(left, right)
        whole = like.new_zeros(like.shape)
        whole[..., first[0], first[1]] = affinity(offset, first, (_moved(first[0], dy), _moved(first[1], dx)))
        whole.masked_fill_(whole < NEGLIGIBLE, 0)
        # In the flattened map a shift beyond a row's end reaches the next row; its affinity is zero.
        distance = dy * width + dx
        stencil.append((distance, whole.flatten(-2)[..., :-distance]))
    return stencil


def _moved(window: slice, by: int) -> slice:
    return slice(window.start + by, window.stop + by)


def _transition(affinities: list[Neighbour], like: Tensor) -> tuple[list[Neighbour], Tensor]:
    """The off-diagonal entries of S = D^-1/2 A D^-1/2, and D as (..., n)."""
    degree = torch.ones_like(like)
    for distance, affinity in affinities:
        degree[..., :-distance] += affinity
        degree[..., distance:] += affinity
    scale = degree.rsqrt()
    scaled = [(d, affinity * scale[..., :-d] * scale[..., d:]) for d, affinity in affinities]
    return [(distance, weight.unsqueeze(-2)) for distance, weight in scaled], degree


def _power(neighbours: list[Neighbour], diagonal: Tensor, values: Tensor, exponent: int) -> Tensor:
    """`S^exponent values` by S^n = sum over k of c_k T_k(S), with T_k+1 = 2 S T_k - T_k-1."""
    now, before = values.clone(), torch.zeros_like(values)
    ahead, back = _taps(neighbours, diagonal, now, before), _taps(neighbours, diagonal, before, now)
    for out, weight, source in ahead:
        out.addcmul_(weight, source)  # T_-1 = T_1 = S values
    coefficients = chebyshev_coefficients(exponent)
    total = coefficients[0] * now
    for coefficient in coefficients[1:]:
        before.neg_()
        for out, weight, source in ahead:
            out.addcmul_(weight, source, value=2)
        now, before, ahead, back = before, now, back, ahead
        if coefficient:
            total.add_(now, alpha=coefficient)
    return total


def _taps(
    neighbours: list[Neighbour], diagonal: Tensor, source: Tensor, out: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The terms of a product with S as (output, weight, source); views, created once as slicing is slow."""
    taps = [(out, diagonal, source)]
    for distance, weight in neighbours:
        taps.append((out[..., :-distance], weight, source[..., distance:]))
        taps.append((out[..., distance:], weight, source[..., :-distance]))
    return taps


def chebyshev_coefficients(exponent: int, truncation: float = TRUNCATION) -> list[float]:
    """Coefficients c_0, c_1, ... of x^exponent in Chebyshev polynomials, up to a truncation error.

    Args:
        exponent: n, at least 0.
        truncation: largest sum of the omitted coefficients.

    Returns:
        c_k = 2 binomial(n, (n - k) / 2) / 2^n where n - k is even (half of it for k = 0), else zero.

    >>> chebyshev_coefficients(3)  # x^3 = 3/4 x + 1/4 (4 x^3 - 3 x)
    [0.0, 0.75, 0.0, 0.25]
    """
    coefficients: list[float] = []
    left = 1.0  # the sum of all coefficients: x^n and every polynomial are 1 at x = 1
    for k in range(exponent + 1):
        even = (exponent - k) % 2 == 0
        # Python divides the integers exactly, however large.
        share = math.comb(exponent, (exponent - k) // 2) / 2**exponent if even else 0.0
        coefficients.append(share if k == 0 else 2 * share)
        left -= coefficients[-1]
        if left <= truncation:
            break
    return coefficients
