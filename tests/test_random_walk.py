"""The random walk against a dense program written from the specification, one pair at a time."""

import math

import numpy as np
import pytest
import torch

from ribseg.functional import random_walk
from ribseg.functional.irn import line_points, neighbour_offsets
from ribseg.functional.random_walk import chebyshev_coefficients


def dense_transition(boundary, radius=5, beta=10.0, dtype=torch.float32):
    """T as a dense matrix, by loops over pixels, neighbours and the points between."""
    height, width = boundary.shape
    edge = boundary.tolist()
    affinity = np.eye(height * width)
    for y in range(height):
        for x in range(width):
            for v in range(max(0, y - radius), min(height, y + radius + 1)):
                for u in range(max(0, x - radius), min(width, x + radius + 1)):
                    if 0 < math.hypot(v - y, u - x) < radius:
                        affinity[y * width + x, v * width + u] = 1 - highest_between(edge, y, x, v, u)
    affinity = torch.from_numpy(affinity).to(dtype) ** beta
    return affinity / affinity.sum(0, keepdim=True)


def highest_between(edge, y, x, v, u):
    length = math.hypot(v - y, u - x)
    return max(
        edge[q][p]
        for q in range(min(y, v), max(y, v) + 1)
        for p in range(min(x, u), max(x, u) + 1)
        if abs((v - y) * (p - x) - (u - x) * (q - y)) / length < 1 - 1e-9
    )


def dense_walk(maps, boundary, steps=256, **settings):
    transition = dense_transition(boundary, dtype=maps.dtype, **settings)
    start = (maps * (1 - boundary)).flatten(1)
    return (start @ torch.linalg.matrix_power(transition, steps)).view(maps.shape)


def example(height, width, classes=2, seed=0, dtype=torch.float32):
    """Maps, and a boundary with weak noise and a few strong walls."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(classes, height, width, generator=generator, dtype=dtype)
    boundary = torch.rand(height, width, generator=generator, dtype=dtype) ** 3
    boundary[height // 2] = 0.97
    boundary[:, width // 3] = 1.0
    return maps, boundary


@pytest.fixture
def _flush_denormals():
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("_flush_denormals")
@pytest.mark.parametrize("size", [(40, 52), (32, 32)])
def test_agrees_with_the_dense_program(size):
    maps, boundary = example(*size)
    walked = random_walk(maps, boundary)
    assert walked.dtype == torch.float32
    assert (walked - dense_walk(maps, boundary)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "settings", [{"radius": 3}, {"beta": 2.0}, {"steps": 255}, {"steps": 1}, {"steps": 0}]
)
@pytest.mark.parametrize("size", [(11, 13), (3, 4), (1, 6), (7, 1)])
def test_is_exact_in_float64_for_any_setting_and_size(size, settings):
    maps, boundary = example(*size, dtype=torch.float64)
    assert (
        random_walk(maps, boundary, **settings) - dense_walk(maps, boundary, **settings)
    ).abs().max() < 1e-7


@pytest.mark.parametrize("seed", range(5))
def test_columns_sum_to_one(seed):
    """A map of ones divided by what it is multiplied with stays a map of ones."""
    boundary = torch.rand(14, 19, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.9
    for steps in (1, 2, 37, 256):
        walked = random_walk((1 / (1 - boundary))[None], boundary, steps=steps)
        torch.testing.assert_close(walked, torch.ones_like(walked), rtol=0, atol=1e-7)


def test_stays_within_the_range_of_the_maps():
    maps, boundary = example(20, 23)
    walked = random_walk((maps > 0.99).float(), boundary)
    assert walked.min() >= 0
    assert walked.max() <= 1


def test_stops_at_a_closed_wall_and_at_the_border():
    maps, wall = torch.zeros(2, 9, 12), torch.zeros(9, 12)
    wall[:, 6], maps[0, 4, 2], maps[1, :, 0] = 1, 1, 1
    walked = random_walk(maps, wall, steps=4096)
    assert walked[:, :, 6:].max() < 1e-6
    # Far along, each pixel's value is the same: the walk is between degrees, the output undoes them.
    assert walked[:, :, :6].min() > 0
    assert walked[1, :, 11].max() < 1e-6, "the map came out at the other side of the image"


def test_batch_is_the_images_one_by_one():
    pairs = [example(9, 10, seed=seed) for seed in range(3)]
    maps, boundary = torch.stack([m for m, _ in pairs]), torch.stack([b for _, b in pairs])
    one_by_one = torch.stack([random_walk(m, b) for m, b in pairs])
    torch.testing.assert_close(random_walk(maps, boundary), one_by_one)


def test_no_maps_and_empty_maps():
    boundary = torch.rand(6, 7)
    assert random_walk(torch.zeros(0, 6, 7), boundary).shape == (0, 6, 7)
    assert not random_walk(torch.zeros(2, 6, 7), boundary).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_dtype(dtype):
    maps, boundary = example(8, 8)
    walked = random_walk(maps.to(dtype), boundary)
    assert walked.dtype == dtype
    torch.testing.assert_close(
        walked.float(), random_walk(maps.to(dtype).float(), boundary), rtol=0, atol=1e-2
    )


def test_leaves_its_input_alone():
    maps, boundary = example(8, 9, dtype=torch.float64)
    before = maps.clone(), boundary.clone()
    random_walk(maps, boundary)
    assert torch.equal(maps, before[0])
    assert torch.equal(boundary, before[1])


@pytest.mark.parametrize(
    ("maps", "boundary", "settings", "message"),
    [
        (torch.zeros(1, 4, 5), torch.zeros(5, 4), {}, "same stride"),
        (torch.zeros(1, 4, 5), torch.full((4, 5), 1.5), {}, "sigmoid"),
        (torch.zeros(1, 4, 5), torch.full((4, 5), float("nan")), {}, "sigmoid"),
        (torch.zeros(1, 4, 5, dtype=torch.int64), torch.zeros(4, 5), {}, "float"),
        (torch.zeros(1, 4, 5), torch.zeros(4, 5), {"beta": 0.0}, "beta"),
        (torch.zeros(1, 4, 5), torch.zeros(4, 5), {"steps": -1}, "steps"),
        (torch.zeros(1, 4, 5), torch.zeros(4, 5), {"radius": 1}, "radius"),
    ],
)
def test_says_what_is_wrong(maps, boundary, settings, message):
    with pytest.raises(ValueError, match=message):
        random_walk(maps, boundary, **settings)


@pytest.mark.parametrize("exponent", [0, 1, 2, 7, 256])
def test_chebyshev_sum_is_the_power(exponent):
    x = np.linspace(-1, 1, 201)
    coefficients = chebyshev_coefficients(exponent)
    assert np.abs(np.polynomial.chebyshev.chebval(x, coefficients) - x**exponent).max() < 1e-8
    assert len(coefficients) <= 100


def test_neighbours_and_lines():
    assert len(neighbour_offsets(5)) == 34
    both = {*neighbour_offsets(5), *((-y, -x) for y, x in neighbour_offsets(5))}
    assert len(both) == 68
    for offset in neighbour_offsets(10):
        points = line_points(offset)
        assert {(0, 0), offset} <= set(points)
        # A line reads the same from its other end.
        assert {(offset[0] - y, offset[1] - x) for y, x in points} == set(points)
