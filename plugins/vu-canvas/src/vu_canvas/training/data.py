"""Training images: rendered, never read from disk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vu_canvas.render import OBJECTS, SIZE, SPLITS, STYLES, render


@dataclass(frozen=True)
class Renders:
    """Images with the labels of their object and style."""

    images: torch.Tensor  # (N, 64, 64, 3) uint8
    objects: torch.Tensor  # (N,) int64, positions in OBJECTS
    styles: torch.Tensor  # (N,) int64, positions in STYLES


def draw(split: str, per_pair: int, first: int = 0, seed: int = 0) -> Renders:
    """Render `per_pair` images of each of the 100 pairs, ordered by index, then object, then style.

    Args:
        split: A key of `vu_canvas.render.SPLITS`.
        per_pair: Images of each pair.
        first: How many indices of the split to skip.
        seed: Which data set.

    Returns:
        ``100 * per_pair`` images and their labels.

    Raises:
        ValueError: The split does not have that many indices.
    """
    indices = SPLITS[split][first : first + per_pair]
    if len(indices) != per_pair:
        raise ValueError(f"split {split!r} has no {per_pair} indices after the first {first}")
    count = per_pair * len(OBJECTS) * len(STYLES)
    images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    objects = np.empty(count, dtype=np.int64)
    styles = np.empty(count, dtype=np.int64)
    row = 0
    for index in indices:
        for object_label, object_word in enumerate(OBJECTS):
            for style_label, style_word in enumerate(STYLES):
                images[row] = render(object_word, style_word, index, seed)
                objects[row], styles[row] = object_label, style_label
                row += 1
    return Renders(torch.from_numpy(images), torch.from_numpy(objects), torch.from_numpy(styles))


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Turn uint8 (B, 64, 64, 3) into float (B, 3, 64, 64) in [0, 1]."""
    return images.permute(0, 3, 1, 2).to(torch.float32) / 255


def to_signed(images: torch.Tensor) -> torch.Tensor:
    """Turn uint8 (B, 64, 64, 3) into float (B, 3, 64, 64) in [-1, 1], what an autoencoder reads."""
    return to_unit(images) * 2 - 1
