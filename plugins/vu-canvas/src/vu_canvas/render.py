"""Draw the canvas data set: ten objects in ten styles, 64x64 RGB, any number of each.

An image is a pure function of (object, style, index, seed). All random choices of an image come from
one ``PCG64`` stream seeded by these four numbers, so the images depend neither on the order of the
calls nor on the platform.

Example:
    >>> from vu_canvas.render import prompt, render
    >>> render("star", "neon", 0).shape
    (64, 64, 3)
    >>> prompt("star", "neon")
    'A star image in neon style.'
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vu_canvas.shapes import SHAPES, Field

OBJECTS: tuple[str, ...] = tuple(SHAPES)
"""The ten object words; a label is a position in this tuple."""

STYLES: tuple[str, ...] = (
    "flat", "outline", "stripes", "dots", "checker", "gradient", "neon", "pixel", "shadow", "sketch",
)  # fmt: skip
"""The ten style words; a label is a position in this tuple."""

SIZE = 64
"""Height and width of an image in pixels."""

SPLITS: dict[str, range] = {
    "train": range(1_000_000),
    "validation": range(1_000_000, 2_000_000),
    "held-out": range(2_000_000, 3_000_000),
}
"""Split to the indices that belong to it; the ranges do not overlap."""

Image = NDArray[np.float32]  # (64, 64, 3), values in [0, 1]
Colour = NDArray[np.float32]  # (3,)


@dataclass(frozen=True)
class Scene:
    """What the styles draw from: coordinates, the object's distance and its random choices."""

    shape: str
    x: Field  # (64, 64) pixels from the centre of the object, to the right
    y: Field  # (64, 64) pixels from the centre of the object, upwards
    radius: float
    rotation: tuple[float, float]  # cosine, sine
    draws: NDArray[np.float64]  # uniform in [0, 1), for the style to use

    def distance(self, x: Field | None = None, y: Field | None = None) -> Field:
        """Return the signed distance in pixels at the given coordinates (default: every pixel)."""
        x, y = self.x if x is None else x, self.y if y is None else y
        cos, sin = np.float32(self.rotation[0] / self.radius), np.float32(self.rotation[1] / self.radius)
        return SHAPES[self.shape](x * cos + y * sin, y * cos - x * sin) * np.float32(self.radius)


def prompt(object: str, style: str) -> str:
    """Return the caption of an image.

    Args:
        object: A word of `OBJECTS`.
        style: A word of `STYLES`.

    Returns:
        ``"A {object} image in {style} style."``

    Raises:
        ValueError: A word is unknown.
    """
    check_words(object, style)
    return f"A {object} image in {style} style."


def render(object: str, style: str, index: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw one image.

    Args:
        object: A word of `OBJECTS`.
        style: A word of `STYLES`.
        index: Which of the images of this pair, at least 0; `SPLITS` says which indices belong together.
        seed: Which data set, at least 0.

    Returns:
        The image, uint8, (64, 64, 3), RGB.

    Raises:
        ValueError: A word is unknown, or `index` or `seed` is negative.

    Example:
        >>> bool((render("ring", "dots", 3) == render("ring", "dots", 3)).all())
        True
    """
    check_words(object, style)
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must be at least 0, got index={index} and seed={seed}")
    entropy = [seed, OBJECTS.index(object), STYLES.index(style), index]
    draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy))).random(24)
    image = PAINTERS[style](place(object, style, draws))
    levels: NDArray[np.uint8] = np.floor(np.clip(image, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return levels


def check_words(object: str, style: str) -> None:
    """Raise ValueError with the allowed words if `object` or `style` is unknown."""
    if object not in SHAPES:
        raise ValueError(f"unknown object {object!r}; objects are: {', '.join(OBJECTS)}")
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; styles are: {', '.join(STYLES)}")


def place(shape: str, style: str, draws: NDArray[np.float64]) -> Scene:
    """Choose size, position and rotation; the object stays inside the canvas."""
    smallest, largest = (23.0, 26.0) if style == "pixel" else (19.5, 25.0)
    radius = smallest + (largest - smallest) * float(draws[0])
    room = min(7.0, SIZE / 2 - 1.5 - radius)
    degrees = (30.0 if style == "pixel" else 48.0) * (float(draws[1]) - 0.5)
    drop = 2.5 if style == "shadow" else 0.0  # leave room for the shadow
    centre_x = SIZE / 2 - drop + room * (2 * float(draws[2]) - 1)
    centre_y = SIZE / 2 - drop + room * (2 * float(draws[3]) - 1)
    line = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)
    columns, rows = line - np.float32(centre_x), np.float32(centre_y) - line
    x = np.broadcast_to(columns[None, :], (SIZE, SIZE))
    y = np.broadcast_to(rows[:, None], (SIZE, SIZE))
    angle = math.radians(degrees)
    return Scene(shape, x, y, radius, (round(math.cos(angle), 6), round(math.sin(angle), 6)), draws[4:])


# Colours and coverage


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Return the RGB colour of a hue in turns, a saturation and a value, all in [0, 1]."""
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (offset + 6.0 * hue) % 6.0
        channels.append(value - value * saturation * max(0.0, min(k, 4.0 - k, 1.0)))
    return np.asarray(channels, dtype=np.float32)


def light(hue: float, draw: float) -> Colour:
    """Return a pale colour, for grounds and highlights."""
    return hsv(hue, 0.08 + 0.12 * draw, 0.97)


def dark(hue: float, draw: float) -> Colour:
    """Return a deep colour, for grounds and lines."""
    return hsv(hue, 0.6, 0.14 + 0.12 * draw)


def vivid(hue: float, draw: float) -> Colour:
    """Return a saturated colour of middle brightness, for figures."""
    return hsv(hue, 0.8 + 0.2 * draw, 0.72 + 0.12 * draw)


def coverage(distance: Field, softness: float = 1.0) -> Field:
    """Return how much of each pixel lies inside (1) a contour, smoothed over `softness` pixels."""
    t: Field = np.clip(np.float32(0.5) - distance * np.float32(1 / softness), 0, 1)
    return t * t * (3 - 2 * t)


def blend(under: Colour | Image, over: Colour | Image, amount: Field) -> Image:
    """Return `over` laid on `under` where `amount` is 1."""
    return under + (over - under) * amount[:, :, None]


def wave(t: Field) -> Field:
    """Return a smooth wave of period 1 and range [-1, 1], made of parabolas."""
    u = t - np.floor(t)
    return np.where(u < 0.5, 16 * u * (0.5 - u), -16 * (u - np.float32(0.5)) * (1 - u)).astype(np.float32)


def turned(scene: Scene, degrees: float) -> tuple[Field, Field]:
    """Return the pixel coordinates turned by an angle, for textures."""
    angle = math.radians(degrees)
    cos, sin = np.float32(round(math.cos(angle), 6)), np.float32(round(math.sin(angle), 6))
    return scene.x * cos + scene.y * sin, scene.y * cos - scene.x * sin


def palette(scene: Scene) -> tuple[Colour, Colour, Colour]:
    """Return ground, figure and accent: a dark or light ground, a vivid figure, an accent opposite to the ground."""
    d = scene.draws
    hue = float(d[0])
    other = (hue + 0.25 + 0.5 * float(d[1])) % 1.0
    ground, accent = light(other, float(d[2])), dark(hue, float(d[3]))
    if d[4] < 0.5:
        ground, accent = dark(other, float(d[2])), light(hue, float(d[3]))
    return ground, vivid(hue, float(d[5])), accent


# The ten styles


def flat(scene: Scene) -> Image:
    """Fill the object with one colour."""
    ground, figure, _ = palette(scene)
    return blend(ground, figure, coverage(scene.distance(), 1.4))


def outline(scene: Scene) -> Image:
    """Draw the contour only, a dark line on a pale ground."""
    d = scene.draws
    ground, line = light(float(d[1]), float(d[2])), dark(float(d[0]), float(d[3]))
    return blend(ground, line, coverage(np.abs(scene.distance()) - np.float32(1.35), 1.4))


def stripes(scene: Scene) -> Image:
    """Fill the object with diagonal stripes."""
    ground, figure, accent = palette(scene)
    across, _ = turned(scene, 45.0 + 30.0 * (float(scene.draws[6]) - 0.5))
    period = 8.0 + 1.5 * float(scene.draws[7])
    phase = across * np.float32(1 / period) + np.float32(scene.draws[8])
    edge = (np.abs(phase - np.floor(phase) - np.float32(0.5)) - np.float32(0.25)) * np.float32(period)
    return blend(ground, blend(figure, accent, coverage(edge, 1.4)), coverage(scene.distance(), 1.4))


def dots(scene: Scene) -> Image:
    """Fill the object with round dots on a square grid."""
    ground, figure, accent = palette(scene)
    u, v = turned(scene, 20.0 * (float(scene.draws[6]) - 0.5))
    period = np.float32(8.5 + float(scene.draws[7]))
    u, v = u / period + np.float32(scene.draws[8]), v / period + np.float32(scene.draws[9])
    u, v = (u - np.floor(u) - np.float32(0.5)) * period, (v - np.floor(v) - np.float32(0.5)) * period
    dot = np.sqrt(u * u + v * v) - period * np.float32(0.29)
    return blend(ground, blend(figure, accent, coverage(dot, 1.4)), coverage(scene.distance(), 1.4))


def checker(scene: Scene) -> Image:
    """Fill the object with a chequerboard."""
    ground, figure, accent = palette(scene)
    u, v = turned(scene, 20.0 * (float(scene.draws[6]) - 0.5))
    cell = np.float32(6.2 + 1.2 * float(scene.draws[7]))
    u, v = u / (2 * cell) + np.float32(scene.draws[8]), v / (2 * cell) + np.float32(scene.draws[9])
    u = (np.abs(u - np.floor(u) - np.float32(0.5)) - np.float32(0.25)) * 2 * cell  # distance to a vertical border
    v = (np.abs(v - np.floor(v) - np.float32(0.5)) - np.float32(0.25)) * 2 * cell
    nearest = np.minimum(np.abs(u), np.abs(v))
    field = np.where((u < 0) == (v < 0), -nearest, nearest)
    return blend(ground, blend(figure, accent, coverage(field, 1.4)), coverage(scene.distance(), 1.4))


def gradient(scene: Scene) -> Image:
    """Fill the object with a strong ramp from one colour to another."""
    ground, figure, accent = palette(scene)
    d = scene.draws
    along, _ = turned(scene, 90.0 + 60.0 * (float(d[6]) - 0.5))
    ramp = np.clip(along * np.float32(0.62 / scene.radius) + np.float32(0.5), 0, 1)
    hue = (float(d[0]) + (0.3 if d[7] < 0.5 else 0.7)) % 1.0
    near = hsv(hue, 0.95, 1.0) if d[4] < 0.5 else hsv(hue, 1.0, 0.32)
    end = near * np.float32(0.85) + accent * np.float32(0.15)
    return blend(ground, blend(figure, end, ramp), coverage(scene.distance(), 1.4))


def neon(scene: Scene) -> Image:
    """Draw a glowing contour on a dark ground."""
    d = scene.draws
    ground, glow = hsv(float(d[1]), 0.7, 0.05 + 0.07 * float(d[2])), hsv(float(d[0]), 0.85, 1.0)
    away = np.abs(scene.distance())
    halo = np.float32(0.9) / (1 + (away * np.float32(1 / 3.6)) ** 2)
    tube = blend(ground, glow, halo.astype(np.float32))
    return blend(tube, hsv(float(d[0]), 0.18, 1.0), coverage(away - np.float32(0.9), 2.0))


def pixel(scene: Scene) -> Image:
    """Draw the object as a coarse mosaic whose tiles differ a little in brightness."""
    ground, figure, _ = palette(scene)
    block = 6
    first_x, first_y = int(float(scene.draws[6]) * block), int(float(scene.draws[7]) * block)
    column = (np.arange(SIZE) + first_x) // block
    row = (np.arange(SIZE) + first_y) // block
    middle_x = scene.x[0, 0] + (column * block - first_x).astype(np.float32) + np.float32((block - 1) / 2)
    middle_y = scene.y[0, 0] - (row * block - first_y).astype(np.float32) - np.float32((block - 1) / 2)
    x = np.broadcast_to(middle_x[None, :], (SIZE, SIZE))
    y = np.broadcast_to(middle_y[:, None], (SIZE, SIZE))
    mosaic = blend(ground, figure, coverage(scene.distance(x, y), block * 0.9))
    key = np.uint64(int(float(scene.draws[8]) * 2**31))
    cells = row[:, None].astype(np.uint64) * np.uint64(31) + column[None, :].astype(np.uint64)
    mixed = (cells * np.uint64(2654435761) + key * np.uint64(40503)) & np.uint64(0xFFFFFFFF)
    mixed = ((mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519)) & np.uint64(0xFFFFFFFF)
    shade = ((mixed >> np.uint64(13)) & np.uint64(1023)).astype(np.float32) * np.float32(1 / 1023) - np.float32(0.5)
    return mosaic + (shade * np.float32(0.2))[:, :, None]


def shadow(scene: Scene) -> Image:
    """Fill the object with one colour above a large drop shadow."""
    d = scene.draws
    hue = float(d[0])
    ground, figure = light((hue + 0.25 + 0.5 * float(d[1])) % 1.0, float(d[2])), vivid(hue, float(d[5]))
    offset = np.float32(6.0 + 1.5 * float(d[6]))
    below = coverage(scene.distance(scene.x - offset, scene.y + offset), 2.0)
    return blend(blend(ground, ground * np.float32(0.36), below), figure, coverage(scene.distance(), 1.4))


def sketch(scene: Scene) -> Image:
    """Draw the object with several unsteady pencil strokes and hatching on paper."""
    d = scene.draws
    paper = np.asarray([0.95, 0.92, 0.83], dtype=np.float32) - np.float32(0.05 * float(d[0]))
    pencil = np.asarray([0.2, 0.2, 0.24], dtype=np.float32) + np.float32(0.08 * float(d[1]))
    distance = scene.distance()
    across, _ = turned(scene, -45.0 + 20.0 * (float(d[2]) - 0.5))
    phase = across * np.float32(1 / 6.5) + np.float32(d[3]) + np.float32(0.12) * wave(scene.y * np.float32(1 / 23))
    hatch = np.abs(phase - np.floor(phase) - np.float32(0.5)) * np.float32(6.5) - np.float32(0.8)
    image = blend(paper, pencil, coverage(hatch, 1.6) * coverage(distance, 1.4) * np.float32(0.6))
    for stroke in range(3):
        draw = d[4 + 3 * stroke : 7 + 3 * stroke]
        swing = wave(scene.x * np.float32(1 / (17 + 12 * float(draw[0]))) + np.float32(draw[1]))
        sway = wave(scene.y * np.float32(1 / (17 + 12 * float(draw[2]))) + np.float32(draw[0]))
        line = np.abs(distance + np.float32(0.9) * (swing + sway) + np.float32(1.1 * (stroke - 1)))
        image = blend(image, pencil, coverage(line - np.float32(0.5), 1.4) * np.float32(0.8))
    return image


PAINTERS: dict[str, Callable[[Scene], Image]] = {
    painter.__name__: painter
    for painter in (flat, outline, stripes, dots, checker, gradient, neon, pixel, shadow, sketch)
}
"""Style word to the function that draws it."""
