"""Drawn objects for the demo data set: a large ordinary body, and on it one small part that gives the class away.

Shapes live in the object's own frame, x to the right, y down, the body within about [-1, 1]. Bodies of all classes
share one palette and similar outlines; only the part is unmistakable.
"""

from __future__ import annotations

import colorsys
from typing import NamedTuple

import cv2
import numpy as np

CLASSES = ("beetle", "car", "fish", "owl", "robot")
_OVERSAMPLING = 4  # drawn this much larger, then averaged: smooth edges
_WHITE, _BLACK = (0.95, 0.95, 0.93), (0.08, 0.08, 0.1)
_HUES = (0.02, 0.09, 0.33, 0.5, 0.58, 0.75, 0.9)  # bodies of every class, and distractors


class Shape(NamedTuple):
    """A filled polygon: points float [P, 2] in the object's frame, colour RGB 0..1, whether it is the telling part."""

    points: np.ndarray
    colour: tuple[float, float, float]
    part: bool = False


class Sprite(NamedTuple):
    """A rendered object: colour float32 [h, w, 3] 0..1, opacity float32 [h, w], part float32 [h, w] (its opacity)."""

    colour: np.ndarray
    opacity: np.ndarray
    part: np.ndarray


class Paint(NamedTuple):
    """Three shades of one body colour, RGB 0..1."""

    main: tuple[float, float, float]
    dark: tuple[float, float, float]
    light: tuple[float, float, float]


def make_object(name: str, radius: float, rng: np.random.Generator) -> Sprite:
    """An object of a class, its body about ``radius`` pixels from centre to end, tilted and perhaps mirrored."""
    paint = random_paint(rng)
    return render(_BODIES[name](paint, rng), radius, rng.uniform(-0.35, 0.35), bool(rng.integers(2)), rng)


def make_distractor(radius: float, rng: np.random.Generator) -> Sprite:
    """A thing without a class: a stone, a ball, a crate or a stick, in the colours of the bodies."""
    paint = random_paint(rng)
    kind = rng.integers(4)
    if kind == 0:
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        lengths = rng.uniform(0.6, 1.0, 12)[:, None]
        shapes = [Shape(np.stack([np.cos(angles), 0.8 * np.sin(angles)], 1) * lengths, paint.main)]
    elif kind == 1:
        shapes = [Shape(ellipse(0, 0, 0.8, 0.8), paint.main), Shape(ellipse(0, 0, 0.8, 0.28), paint.light)]
    elif kind == 2:
        shapes = [Shape(box(0, 0, 0.8, 0.7, 0.1), paint.main)]
        shapes += [Shape(box(x, 0, 0.05, 0.7, 0.02), paint.dark) for x in (-0.4, 0.0, 0.4)]
    else:
        shapes = [Shape(box(0, 0, 1.1, 0.16, 0.14), paint.dark), Shape(box(0.3, -0.3, 0.1, 0.3, 0.08), paint.dark)]
    return render(shapes, radius, rng.uniform(-1.5, 1.5), False, rng)


def random_paint(rng: np.random.Generator) -> Paint:
    """Shades of a hue of the common palette."""
    hue = rng.choice(_HUES) + rng.uniform(-0.03, 0.03)
    saturation, value = rng.uniform(0.45, 0.85), rng.uniform(0.55, 0.9)
    factors = ((1, 1), (1, 0.7), (0.6, 1.2))
    return Paint(*(colorsys.hsv_to_rgb(hue % 1, saturation * s, min(1.0, value * v)) for s, v in factors))


def render(shapes: list[Shape], radius: float, angle: float, mirrored: bool, rng: np.random.Generator) -> Sprite:
    """Rasterise shapes with smooth edges, a soft body pattern, light from one side and a little noise."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn @ np.diag([-1.0 if mirrored else 1.0, 1.0]) * radius
    placed = [shape.points @ turn.T for shape in shapes]
    every = np.concatenate(placed)
    low = np.floor(every.min(0)) - 1
    width, height = (np.ceil(every.max(0)) + 1 - low).astype(int)
    big = (height * _OVERSAMPLING, width * _OVERSAMPLING)
    colour, opacity, part = np.zeros((*big, 3), np.float32), np.zeros(big, np.float32), np.zeros(big, np.float32)
    for shape, points in zip(shapes, placed, strict=True):
        corners = [np.round((points - low) * _OVERSAMPLING).astype(np.int32)]
        cv2.fillPoly(colour, corners, shape.colour)
        cv2.fillPoly(opacity, corners, 1.0)
        cv2.fillPoly(part, corners, float(shape.part))
    small = [cv2.resize(layer, (width, height), interpolation=cv2.INTER_AREA) for layer in (colour, opacity, part)]
    colour = small[0] / np.maximum(small[1], 1e-3)[..., None]
    return Sprite(np.clip(colour * _shading(height, width, radius, rng)[..., None], 0, 1), small[1], small[2])


def _shading(height: int, width: int, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness factors [h, w]: light from a random side, faint stripes, noise."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    side, stripe = rng.uniform(0, 2 * np.pi, 2)
    light = ((x - width / 2) * np.cos(side) + (y - height / 2) * np.sin(side)) / radius * rng.uniform(0.05, 0.2)
    period = radius * rng.uniform(0.15, 0.4)
    stripes = np.sin((x * np.cos(stripe) + y * np.sin(stripe)) * 2 * np.pi / period) * rng.uniform(0.0, 0.07)
    return 1 + light + stripes + rng.normal(0, 0.03, (height, width)).astype(np.float32)


# ---------------------------------------------------------------------- geometry


def ellipse(x: float, y: float, a: float, b: float) -> np.ndarray:
    """Points [32, 2] of an ellipse with half-axes a, b."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return np.stack([x + a * np.cos(angles), y + b * np.sin(angles)], 1)


def box(x: float, y: float, a: float, b: float, corner: float) -> np.ndarray:
    """Points [32, 2] of a rectangle with half-sides a, b and rounded corners."""
    angles = (np.arange(32) + 0.5) * 2 * np.pi / 32
    round_part = np.stack([np.cos(angles), np.sin(angles)], 1)
    return np.array([x, y]) + round_part * corner + np.sign(round_part) * (np.array([a, b]) - corner)


def polygon(*points: tuple[float, float]) -> np.ndarray:
    """Points [P, 2]."""
    return np.array(points, float)


# ---------------------------------------------------------------------- the telling parts


def _spiral(x: float, y: float, r: float) -> list[Shape]:
    """Beetle: a white spiral on magenta."""
    t = np.linspace(0.5, 4.2 * np.pi, 60)
    arm = np.stack([np.cos(t), np.sin(t)], 1) * (t / t[-1] * r * 0.85)[:, None] + (x, y)
    inner = np.stack([np.cos(t), np.sin(t)], 1) * (t / t[-1] * r * 0.85 - r * 0.16)[:, None] + (x, y)
    ribbon = np.concatenate([arm, inner[::-1]])
    return [Shape(ellipse(x, y, r, r), (0.78, 0.05, 0.5), True), Shape(ribbon, _WHITE, True)]


def _star(x: float, y: float, r: float) -> list[Shape]:
    """Car: a yellow star on dark blue."""
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    lengths = np.where(np.arange(10) % 2, 0.36, 0.88) * r
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * lengths[:, None] + (x, y)
    return [Shape(ellipse(x, y, r, r), (0.06, 0.08, 0.35), True), Shape(points, (1.0, 0.85, 0.1), True)]


def _target(x: float, y: float, r: float) -> list[Shape]:
    """Fish: an eye of red and white rings."""
    rings = ((1.0, _WHITE), (0.75, (0.85, 0.08, 0.08)), (0.5, _WHITE), (0.28, _BLACK))
    return [Shape(ellipse(x, y, r * share, r * share), colour, True) for share, colour in rings]


def _face(x: float, y: float, r: float) -> list[Shape]:
    """Owl: two yellow eyes and an orange beak on a white mask."""
    shapes = [Shape(ellipse(x, y, r * 1.25, r * 0.8), _WHITE, True)]
    for side in (-0.52, 0.52):
        shapes += [
            Shape(ellipse(x + side * r, y - 0.1 * r, 0.45 * r, 0.45 * r), (1.0, 0.8, 0.1), True),
            Shape(ellipse(x + side * r, y - 0.1 * r, 0.2 * r, 0.2 * r), _BLACK, True),
        ]
    beak = polygon((x - 0.2 * r, y + 0.1 * r), (x + 0.2 * r, y + 0.1 * r), (x, y + 0.65 * r))
    return [*shapes, Shape(beak, (0.95, 0.45, 0.05), True)]


def _checkers(x: float, y: float, r: float) -> list[Shape]:
    """Robot: a black and white checkerboard in a green frame."""
    shapes = [
        Shape(box(x, y, r, r, 0.15 * r), (0.1, 0.75, 0.25), True),
        Shape(box(x, y, 0.8 * r, 0.8 * r, 0.01), _WHITE, True),
    ]
    step = 0.4 * r
    for row in range(4):
        for column in range(row % 2, 4, 2):
            centre = (x + (column - 1.5) * step, y + (row - 1.5) * step)
            shapes.append(Shape(box(*centre, step / 2, step / 2, 0.01), _BLACK, True))
    return shapes


# ---------------------------------------------------------------------- bodies


def _beetle(paint: Paint, rng: np.random.Generator) -> list[Shape]:
    shapes = []
    for x in (-0.45, 0.0, 0.4):
        for side in (-1, 1):
            foot, end = x + rng.uniform(-0.12, 0.12), 0.95 * side
            leg = polygon((x - 0.08, 0), (x + 0.08, 0), (foot + 0.05, end), (foot - 0.05, end))
            shapes.append(Shape(leg, paint.dark))
    shapes += [
        Shape(ellipse(0.8, 0, 0.3, 0.34), paint.dark),
        Shape(ellipse(0, 0, 0.85, rng.uniform(0.62, 0.74)), paint.main),
        Shape(box(-0.05, 0, 0.76, 0.02, 0.02), paint.dark),
    ]
    return shapes + _spiral(rng.uniform(-0.35, 0.25), rng.choice([-0.3, 0.3]), rng.uniform(0.24, 0.29))


def _car(paint: Paint, rng: np.random.Generator) -> list[Shape]:
    roof = rng.uniform(-0.72, -0.6)
    shapes = [
        Shape(polygon((-0.6, 0), (-0.42, roof), (0.3, roof), (0.6, 0)), paint.dark),
        Shape(polygon((-0.44, -0.08), (-0.32, roof + 0.12), (0.22, roof + 0.12), (0.42, -0.08)), paint.light),
        Shape(box(0, 0.15, 1.0, 0.34, 0.2), paint.main),
    ]
    for x in (-0.55, 0.55):
        shapes += [Shape(ellipse(x, 0.48, 0.24, 0.24), paint.dark), Shape(ellipse(x, 0.48, 0.1, 0.1), paint.light)]
    return shapes + _star(rng.uniform(-0.15, 0.15), 0.12, rng.uniform(0.23, 0.27))


def _fish(paint: Paint, rng: np.random.Generator) -> list[Shape]:
    height = rng.uniform(0.5, 0.62)
    shapes = [
        Shape(polygon((-0.6, 0), (-1.05, -0.5), (-0.9, 0), (-1.05, 0.5)), paint.dark),
        Shape(polygon((-0.3, -height * 0.8), (0.05, -height - 0.32), (0.4, -height * 0.7)), paint.dark),
        Shape(ellipse(0.1, 0, 0.85, height), paint.main),
        Shape(polygon((-0.15, 0.08), (-0.5, 0.36), (-0.1, 0.38)), paint.dark),
    ]
    return shapes + _target(rng.uniform(0.4, 0.52), -0.08, rng.uniform(0.23, 0.27))


def _owl(paint: Paint, rng: np.random.Generator) -> list[Shape]:
    width = rng.uniform(0.62, 0.72)
    shapes = []
    for side in (-1, 1):
        shapes += [
            Shape(polygon((0.15 * side, -0.7), (0.55 * side, -1.05), (0.55 * side, -0.5)), paint.dark),
            Shape(box(0.25 * side, 0.9, 0.12, 0.12, 0.1), paint.dark),
        ]
    shapes.append(Shape(ellipse(0, 0, width, 0.9), paint.main))
    shapes += [Shape(ellipse(side * (width - 0.05), 0.2, 0.2, 0.5), paint.dark) for side in (-1, 1)]
    shapes.append(Shape(ellipse(0, 0.4, 0.34, 0.36), paint.light))
    return shapes + _face(0, -0.4, rng.uniform(0.27, 0.31))


def _robot(paint: Paint, rng: np.random.Generator) -> list[Shape]:
    shapes = [
        Shape(box(-0.32, 0.85, 0.15, 0.25, 0.05), paint.dark),
        Shape(box(0.32, 0.85, 0.15, 0.25, 0.05), paint.dark),
        Shape(box(-0.76, 0.2, 0.12, 0.38, 0.1), paint.dark),
        Shape(box(0.76, 0.2, 0.12, 0.38, 0.1), paint.dark),
        Shape(box(0, -0.95, 0.04, 0.2, 0.03), paint.dark),
        Shape(box(0, -0.6, 0.42, 0.3, 0.1), paint.light),
        Shape(box(0, 0.22, 0.66, 0.52, 0.12), paint.main),
    ]
    return shapes + _checkers(rng.uniform(-0.28, 0.28), 0.18 + rng.uniform(-0.08, 0.12), rng.uniform(0.22, 0.26))


_BODIES = {"beetle": _beetle, "car": _car, "fish": _fish, "owl": _owl, "robot": _robot}
