"""The ten objects as signed distance functions.

Every function takes coordinates in units of the object's radius, x to the right and y upwards, and
returns the signed distance to the contour in the same unit: negative inside, positive outside. Only
``+ - * /``, ``sqrt``, minimum and maximum are used on arrays, which IEEE 754 rounds exactly, so the
result does not depend on the platform.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""A plane of float32 values, one per pixel."""

DistanceFunction = Callable[[Field, Field], Field]
"""Signed distance at coordinates x and y."""


def polar(radius: float, degrees: float) -> tuple[float, float]:
    """Return the point at ``radius`` and ``degrees`` (counter-clockwise from the x axis), rounded to 6 digits."""
    angle = math.radians(degrees)
    return round(radius * math.cos(angle), 6), round(radius * math.sin(angle), 6)


def disc(x: Field, y: Field, radius: float, centre: tuple[float, float] = (0.0, 0.0)) -> Field:
    """Return the signed distance to a disc."""
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    distance: Field = np.sqrt(dx * dx + dy * dy) - np.float32(radius)
    return distance


def box(x: Field, y: Field, width: float, height: float) -> Field:
    """Return the signed distance to a centred box with the given half width and half height."""
    dx, dy = np.abs(x) - np.float32(width), np.abs(y) - np.float32(height)
    outside_x, outside_y = np.maximum(dx, 0), np.maximum(dy, 0)
    outside: Field = np.sqrt(outside_x * outside_x + outside_y * outside_y)
    inside: Field = np.minimum(np.maximum(dx, dy), 0)
    return outside + inside


def polygon(x: Field, y: Field, vertices: list[tuple[float, float]]) -> Field:
    """Return the signed distance to a simple polygon."""
    points = np.asarray(vertices, dtype=np.float32)
    ends = np.roll(points, 1, axis=0)
    nearest: Field = np.full(x.shape, np.inf, dtype=np.float32)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(points, ends, strict=True):
        edge_x, edge_y = bx - ax, by - ay
        to_x, to_y = x - ax, y - ay
        along = np.clip((to_x * edge_x + to_y * edge_y) / (edge_x * edge_x + edge_y * edge_y), 0, 1)
        off_x, off_y = to_x - edge_x * along, to_y - edge_y * along
        nearest = np.minimum(nearest, off_x * off_x + off_y * off_y)
        if edge_y != 0:
            inside ^= ((y >= ay) != (y >= by)) & (to_x < to_y * (edge_x / edge_y))
    distance = np.sqrt(nearest)
    return np.where(inside, -distance, distance)


def circle(x: Field, y: Field) -> Field:
    """Return the distance to the circle."""
    return disc(x, y, 0.94)


def square(x: Field, y: Field) -> Field:
    """Return the distance to the square."""
    return box(x, y, 0.8, 0.8)


def triangle(x: Field, y: Field) -> Field:
    """Return the distance to an equilateral triangle that points upwards."""
    return polygon(x, y + np.float32(0.12), [polar(1.16, 90), polar(1.16, 210), polar(1.16, 330)])


def star(x: Field, y: Field) -> Field:
    """Return the distance to a five-pointed star with deep notches."""
    corners = [polar(1.18 if corner % 2 == 0 else 0.46, 90 + 36 * corner) for corner in range(10)]
    return polygon(x, y, corners)


def cross(x: Field, y: Field) -> Field:
    """Return the distance to a cross with four equal arms."""
    return np.minimum(box(x, y, 1.0, 0.31), box(x, y, 0.31, 1.0))


def ring(x: Field, y: Field) -> Field:
    """Return the distance to a ring with a thick band."""
    return np.abs(disc(x, y, 0.72)) - np.float32(0.26)


def heart(x: Field, y: Field) -> Field:
    """Return the distance to a heart: two discs and a wedge."""
    side = np.abs(x)
    lobe = disc(side, y, 0.5, (0.46, 0.36))
    wedge = polygon(x, y, [(0.0, -1.02), (0.845, 0.045), (0.46, 0.5), (0.0, 0.36), (-0.46, 0.5), (-0.845, 0.045)])
    return np.minimum(lobe, wedge)


def moon(x: Field, y: Field) -> Field:
    """Return the distance to a crescent that opens to the right."""
    moved = x - np.float32(0.12)
    return np.maximum(disc(moved, y, 1.0), -disc(moved, y, 0.8, (0.48, 0.14)))


def arrow(x: Field, y: Field) -> Field:
    """Return the distance to an arrow that points upwards."""
    head = [(0.0, 1.06), (-0.86, 0.12), (-0.3, 0.12)]
    tail = [(-0.3, -1.0), (0.3, -1.0), (0.3, 0.12), (0.86, 0.12)]
    return polygon(x, y, head + tail)


def flower(x: Field, y: Field) -> Field:
    """Return the distance to five round petals around a hole."""
    petals = [disc(x, y, 0.4, polar(0.64, 90 + 72 * petal)) for petal in range(5)]
    blossom = np.minimum.reduce([*petals, disc(x, y, 0.42)])
    return np.maximum(blossom, -disc(x, y, 0.2))


SHAPES: dict[str, DistanceFunction] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "ring": ring,
    "heart": heart,
    "moon": moon,
    "arrow": arrow,
    "flower": flower,
}
"""Object word to distance function, in the order of `vu_canvas.render.OBJECTS`."""
