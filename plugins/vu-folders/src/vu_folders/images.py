"""From a file to numbers: resize, crop, flip, scale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vu_folders.file_check import no_image, refuse_deep

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor


def read_image(
    path: Path, size: int, *, random_crop: bool, flip: bool, generator: torch.Generator, short: int | None = None
) -> Tensor:
    """Return an image as float32 ``(3, size, size)`` in [-1, 1].

    The short side is resized to ``short`` (bilinear, antialiased), then a square is cut out: the middle one, or one at
    a random place; with ``flip`` it is mirrored with probability 1/2. Pixels p become ``(p / 255 - 0.5) / 0.5``. Of an
    animated image the first frame is taken.

    Args:
        path: the file.
        size: side in pixels.
        random_crop: whether the square is taken at a random place.
        flip: whether the image may be mirrored.
        generator: draws top, left and flip, always in this order, so that one setting does not shift another's draw.
        short: the short side in pixels, at least ``size``; ``size`` when absent.

    Raises:
        DataError: VU-D073 when the file is no image or damaged.
    """
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            refuse_deep(file)
            image = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise no_image(path, error, str(path)) from error
    image = _resize(image, short or size)
    draws = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    width, height = image.size
    spare = (width - size, height - size)
    place = (draws[0], draws[1]) if random_crop else None
    left, top = (_offset(room, draw) for room, draw in zip(spare, place or (None, None), strict=True))
    square = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32)  # (H, W, 3)
    pixels = torch.from_numpy(square / 127.5 - 1).permute(2, 0, 1)  # (3, H, W)
    if flip and draws[2] < 0.5:
        pixels = pixels.flip(-1)
    return pixels.contiguous()


def _offset(room: int, draw: float | None) -> int:
    """Return where a square begins: at one of ``room + 1`` places, or in the middle."""
    return round(room / 2) if draw is None else int(draw * (room + 1))


def _resize(image: Image.Image, size: int) -> Image.Image:
    from PIL import Image as Pillow

    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short == size:
        return image
    other = max(size, int(size * long / short))
    shape = (size, other) if width <= height else (other, size)
    return image.resize(shape, Pillow.Resampling.BILINEAR)
