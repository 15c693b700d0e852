"""A procedural world of creatures: a head that carries a mark, and a body of some shape, hue and texture.

It is the source of the built-in demo data set and of the pretraining images of the demo backbone. All
randomness comes from the generators that are passed in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (H, W, 3) uint8 RGB
Field = NDArray[np.float32]  # (H, W) or (H, W, 3) float32 in [0, 1]
Reals = NDArray[np.floating[Any]]

TEXTURES = (
    "stripes", "diagonal", "checker", "dots", "rings", "grid",
    "bricks", "zigzag", "waves", "speckle", "scales", "weave",
)  # fmt: skip
HUES = 12  # number of hues; hue i stands for the angle 360 i / 12 degrees
BACKGROUND, HEAD, BODY = 0, 1, 2  # values of a parts mask

_SHIFT = 4  # Fractional bits of the coordinates that are handed to OpenCV.


@dataclass(frozen=True)
class Looks:
    """What a creature looks like: indices into `MARKS`, `TEXTURES`, `SHAPES`, and a hue in [0, HUES)."""

    mark: int
    texture: int
    shape: int
    hue: int


class Pose(NamedTuple):
    """Where a creature is: body centre (x, y), half its length (pixels), direction of the head (rad)."""

    x: float
    y: float
    length: float
    angle: float


def random_looks(rng: np.random.Generator) -> Looks:
    """Random attributes, uniform and independent."""
    return Looks(*(int(rng.integers(n)) for n in (len(MARKS), len(TEXTURES), len(SHAPES), HUES)))


# --- backgrounds and textures -------------------------------------------------------------------------


def background(size: int, rng: np.random.Generator) -> Field:
    """A random background: (size, size, 3), a smooth blend of two pale or dull colours."""
    cells = int(rng.integers(2, 5))
    coarse = rng.random((cells, cells), dtype=np.float32)
    blend = np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)[..., None]
    value = rng.uniform(0.25, 0.9)
    first, second = (
        _rgb(
            rng.uniform(0, 360), rng.uniform(0.0, 0.3), np.clip(value + rng.uniform(-0.15, 0.15), 0.15, 0.95)
        )
        for _ in range(2)
    )
    return np.asarray(first * blend + second * (1 - blend), dtype=np.float32)


def texture_field(kind: str, size: int, rng: np.random.Generator) -> Field:
    """The pattern of a texture: (size, size), 0 = dark colour, 1 = light colour.

    Period (6 to 9 pixels), phase, and direction (within 15 degrees) vary.
    """
    period, turn = rng.uniform(6, 9), rng.uniform(-0.26, 0.26)
    if kind == "diagonal":
        turn += np.pi / 4
    y, x = np.mgrid[:size, :size].astype(np.float32) / period
    u = np.cos(turn) * x + np.sin(turn) * y + rng.random()
    v = np.cos(turn) * y - np.sin(turn) * x + rng.random()
    if kind == "speckle":
        small = rng.standard_normal((max(2, int(size / period * 2)),) * 2).astype(np.float32)
        wave = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
    else:
        wave = _WAVES[kind](u, v)
    return np.asarray(np.clip(0.5 + 1.5 * wave, 0, 1), dtype=np.float32)


def _saw(t: Reals) -> Reals:
    """Signed distance to the nearest integer + 1/2, in [-1/2, 1/2)."""
    return t - np.floor(t) - 0.5


# Texture -> its signed pattern over coordinates u, v counted in periods.
_WAVES: dict[str, Callable[[Reals, Reals], Reals]] = {
    "stripes": lambda u, v: np.sin(2 * np.pi * v),
    "diagonal": lambda u, v: np.sin(2 * np.pi * v),
    "checker": lambda u, v: 2 * np.sin(np.pi * u) * np.sin(np.pi * v),
    "dots": lambda u, v: 2.5 * (0.34 - np.hypot(_saw(u), _saw(v))),
    "rings": lambda u, v: np.cos(4 * np.pi * np.hypot(_saw(u / 2), _saw(v / 2)) * 1.5),
    "grid": lambda u, v: 3 * (np.maximum(np.abs(_saw(u)), np.abs(_saw(v))) - 0.36),
    "bricks": lambda u, v: (
        3 * (0.38 - np.maximum(np.abs(_saw(u / 2 + np.floor(v) / 2)) * 2 - 0.5, np.abs(_saw(v))))
    ),
    "zigzag": lambda u, v: np.sin(2 * np.pi * (v + 1.2 * np.abs(_saw(u / 1.6)))),
    "waves": lambda u, v: np.sin(2 * np.pi * (v + 0.25 * np.sin(2 * np.pi * u / 1.8))),
    "scales": lambda u, v: 3 * (0.42 - np.hypot(_saw(u + np.floor(v) / 2), v - np.floor(v) - 0.1) * 0.62),
    "weave": lambda u, v: np.where(
        (np.floor(u) + np.floor(v)) % 2 == 0, np.sin(4 * np.pi * u), np.sin(4 * np.pi * v)
    ),
}


def _rgb(hue: float, saturation: float, value: float) -> NDArray[np.float32]:
    """(3,) float32 RGB of a hue in degrees, saturation and value in [0, 1]."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    return np.asarray(value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1)), dtype=np.float32)


# --- outlines: polygons (V, 2) in a unit frame --------------------------------------------------------


def _circle(radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> NDArray[np.float64]:
    return _polar(np.full(24, radius), 0.0) + np.array([x, y])


def _box(width: float, height: float, x: float = 0.0, y: float = 0.0) -> NDArray[np.float64]:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return corners * np.array([width, height]) + np.array([x, y])


def _polar(radii: NDArray[np.float64], start: float = -np.pi / 2) -> NDArray[np.float64]:
    turn = start + np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.stack([radii * np.cos(turn), radii * np.sin(turn)], axis=1)


def _turned(polygon: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    return polygon @ np.array([[c, s], [-s, c]])


_GEAR = np.where(np.arange(32) % 4 < 2, 1.0, 0.74)
_BODIES: dict[str, tuple[NDArray[np.float64], ...]] = {
    # x from -1 to 1, the head sits at x = 1.
    "ellipse": (_circle() * [1, 0.66],),
    "box": (_box(1, 0.58),),
    "wedge": (np.array([[-1, -0.85], [1, -0.2], [1, 0.2], [-1, 0.85]]),),
    "hexagon": (_polar(np.ones(6), 0.0) * [1, 0.85],),
    "gear": (_polar(_GEAR) * [1, 0.8],),
    "fish": (_circle() * [0.75, 0.6] + [0.25, 0], np.array([[-0.3, 0], [-1, -0.7], [-1, 0.7]])),
    "bone": (_box(0.8, 0.36), _circle(0.52, -0.55, 0), _circle(0.52, 0.5, 0)),
    "drop": (_circle(0.68, -0.32, 0), np.array([[-0.2, -0.66], [1.1, -0.1], [1.1, 0.1], [-0.2, 0.66]])),
}
# A mark is a list of polygons; True paints ink, False paints the head's colour over it.
_MARKS: dict[str, tuple[tuple[NDArray[np.float64], bool], ...]] = {
    "plus": ((_box(0.75, 0.2), True), (_box(0.2, 0.75), True)),
    "saltire": ((_turned(_box(0.8, 0.19), np.pi / 4), True), (_turned(_box(0.19, 0.8), np.pi / 4), True)),
    "ring": ((_circle(0.72), True), (_circle(0.4), False)),
    "dot": ((_circle(0.48), True),),
    "triangle": ((_polar(np.full(3, 0.85)), True),),
    "square": ((_box(0.52, 0.52), True),),
    "star": ((_polar(np.tile([0.9, 0.34], 5)), True),),
    "bar": ((_box(0.75, 0.25), True),),
    "pair": ((_circle(0.3, -0.42), True), (_circle(0.3, 0.42), True)),
    "crescent": ((_circle(0.75), True), (_circle(0.62, 0.38), False)),
    "chevron": (
        (np.array([[-0.7, 0.45], [0, -0.65], [0.7, 0.45], [0.7, 0.75], [0, -0.05], [-0.7, 0.75]]), True),
    ),
    "hourglass": ((np.array([[-0.6, -0.7], [0.6, -0.7], [-0.6, 0.7], [0.6, 0.7]]), True),),
    "tee": ((_box(0.7, 0.2, 0, -0.5), True), (_box(0.2, 0.7), True)),
    "half": ((_circle(0.8), True), (_box(1, 0.5, 0, 0.5), False)),
    "target": ((_circle(0.8), True), (_circle(0.56), False), (_circle(0.3), True)),
    "comb": tuple((_box(0.7, 0.14, 0, y), True) for y in (-0.5, 0.0, 0.5)),
}
MARKS, SHAPES = tuple(_MARKS), tuple(_BODIES)


def _fill(canvas: NDArray[np.uint8], polygon: NDArray[np.float64], value: int) -> None:
    points = np.round(polygon * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(canvas, [points], value, lineType=cv2.LINE_8, shift=_SHIFT)


# --- creatures ----------------------------------------------------------------------------------------


def parts_mask(size: int, looks: Looks, pose: Pose) -> NDArray[np.uint8]:
    """(size, size) uint8: `HEAD`, `BODY`, or `BACKGROUND`. The head lies over the body's end."""
    parts = np.zeros((size, size), np.uint8)
    place = np.array([pose.x, pose.y])
    for outline in _BODIES[SHAPES[looks.shape]]:
        _fill(parts, _turned(outline * pose.length, pose.angle) + place, BODY)
    _fill(parts, _circle(head_radius(pose), *head_centre(pose)), HEAD)
    return parts


def head_radius(pose: Pose) -> float:
    """Radius of the head in pixels."""
    return 0.42 * pose.length


def head_centre(pose: Pose) -> tuple[float, float]:
    """(x, y) of the head's centre in pixels."""
    reach = 1.05 * pose.length
    return pose.x + reach * float(np.cos(pose.angle)), pose.y + reach * float(np.sin(pose.angle))


def paint(canvas: Field, looks: Looks, pose: Pose, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paints a creature onto the canvas, in place.

    Args:
        canvas: (S, S, 3) float32 in [0, 1].
        looks: mark, texture, shape and hue.
        pose: place, size and direction.
        rng: for shades, the texture's phase and period, and the mark's tilt.

    Returns:
        (S, S) uint8 parts mask of this creature.
    """
    size = canvas.shape[0]
    parts = parts_mask(size, looks, pose)
    hue = (looks.hue + rng.uniform(-0.3, 0.3)) * 360 / HUES
    light = _rgb(hue, rng.uniform(0.45, 0.85), rng.uniform(0.8, 1.0))
    dark = _rgb(hue, rng.uniform(0.6, 0.95), rng.uniform(0.2, 0.45))
    field = texture_field(TEXTURES[looks.texture], size, rng)[..., None]
    body, head = parts == BODY, parts == HEAD
    canvas[body] = (dark + (light - dark) * field)[body]
    # The mark in ink, pale on dark or dark on pale.
    ink = np.zeros((size, size), np.uint8)
    tilt, radius, centre = rng.uniform(-0.2, 0.2), 0.9 * head_radius(pose), np.array(head_centre(pose))
    for outline, paints in _MARKS[MARKS[looks.mark]]:
        _fill(ink, _turned(outline, tilt) * radius + centre, 255 if paints else 0)
    pale, black = 0.35 * light + 0.65, 0.3 * dark
    ground, mark = (pale, black) if rng.random() < 0.5 else (black, pale)
    blend = (cv2.GaussianBlur(ink, (3, 3), 0.6) / np.float32(255))[..., None]
    canvas[head] = (ground + (mark - ground) * blend)[head]
    return parts


def develop(canvas: Field, rng: np.random.Generator) -> Image:
    """The canvas, slightly blurred, with pixel noise, as uint8."""
    soft = cv2.GaussianBlur(canvas, (3, 3), 0.5) * 255
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(1, 4))
    return np.asarray(np.clip(np.round(soft + noise), 0, 255), dtype=np.uint8)
