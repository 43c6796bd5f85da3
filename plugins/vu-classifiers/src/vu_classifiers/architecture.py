"""What a face transformer is made of, as a file beside its weights tells it or as their shapes do; torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vu_classifiers.blocks import find_blocks
from vu_core import ModelError, StoredTensor

ARCHITECTURE = "face_transformer.json"
WEIGHTS = "model.safetensors"
CLASSES = "classes.json"

HEADS = {"cosface": 0.35, "arcface": 0.5, "softmax": 0.0}
"""Kinds of heads and their published margins."""

SCALE, STRIDE, HEAD_WIDTH = 64.0, 8, 64
"""Published: what cosines are multiplied with, the distance of patches in pixels, and the width of a head."""


def _count(_: Any, attribute: attrs.Attribute[int], value: object) -> None:
    least = 0 if attribute.name == "pad" else 1
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{attribute.name} must be a whole number from {least}, but is {value!r}")


def _number(_: Any, attribute: attrs.Attribute[float], value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{attribute.name} must be a number from 0, but is {value!r}")


def _share(_: Any, attribute: attrs.Attribute[float], value: float) -> None:
    if value >= 1:
        raise ValueError(f"{attribute.name} must be below 1, but is {value!r}")


def _head(_: Any, attribute: attrs.Attribute[str], value: object) -> None:
    if value not in tuple(HEADS):
        raise ValueError(f"{attribute.name} must be one of {', '.join(HEADS)}, but is {value!r}")


def _usual_margin(made: Architecture) -> float:
    return HEADS.get(made.head, 0.0) if isinstance(made.head, str) else 0.0


@attrs.frozen
class Architecture:
    """A vision transformer for faces; the defaults are the published ViT-P8S8 of 100 identities.

    Args:
        classes: number of identities K.
        size: height and width of the images; patch, stride, pad: of the windows that become tokens, in pixels.
        width: d; depth: number of blocks; heads, head_width: of the attention; hidden: m, of the feed-forward network.
        dropout: of tokens, attention and feed-forward network, in training only.
        head: ``cosface``, ``arcface`` or ``softmax``; scale, margin: of the first two.

    Raises:
        ValueError: a number out of range, or an unknown head.

    Example:
        >>> Architecture().tokens, Architecture(patch=12, pad=4).tokens
        (197, 197)
    """

    classes: int = attrs.field(default=100, validator=_count)
    size: int = attrs.field(default=112, validator=_count)
    patch: int = attrs.field(default=8, validator=_count)
    stride: int = attrs.field(default=STRIDE, validator=_count)
    pad: int = attrs.field(default=0, validator=_count)
    width: int = attrs.field(default=512, validator=_count)
    depth: int = attrs.field(default=6, validator=_count)
    heads: int = attrs.field(default=8, validator=_count)
    head_width: int = attrs.field(default=HEAD_WIDTH, validator=_count)
    hidden: int = attrs.field(default=2048, validator=_count)
    dropout: float = attrs.field(default=0.1, validator=[_number, _share])
    head: str = attrs.field(default="cosface", validator=_head)
    scale: float = attrs.field(default=SCALE, validator=_number)
    margin: float = attrs.field(default=attrs.Factory(_usual_margin, takes_self=True), validator=_number)

    def __attrs_post_init__(self) -> None:
        """Raise ValueError where the image is smaller than a patch."""
        if self.size + 2 * self.pad < self.patch:
            raise ValueError(f"size {self.size} with pad {self.pad} is smaller than patch {self.patch}")

    @property
    def tokens(self) -> int:
        """Number of tokens: a square of patches, and one that the head reads."""
        return ((self.size + 2 * self.pad - self.patch) // self.stride + 1) ** 2 + 1


def read_architecture(file: Path, tensors: Sequence[StoredTensor]) -> Architecture:
    """Return what ``face_transformer.json`` beside the weights says; without it, what their shapes say.

    Raises:
        ModelError: ``VU-M115`` when the file is damaged or the tensors are those of no face transformer.
    """
    told = file.parent / ARCHITECTURE
    try:
        if told.is_file():
            return _told(json.loads(told.read_text(encoding="utf-8")))
        return _of_shapes({tensor.name: tensor.shape for tensor in tensors})
    except (ValueError, TypeError, KeyError, IndexError) as error:
        place = told if told.is_file() else file
        why = f"lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ModelError(
            "VU-M115",
            f"{place.name!r} describes no face transformer: {why.removesuffix('.')}.",
            "Name a folder that `python -m vu_classifiers.pretrain` wrote.",
            where=str(place),
        ) from error


def _told(content: object) -> Architecture:
    if not isinstance(content, dict):
        raise TypeError("it holds no JSON object")
    known = {field.name for field in attrs.fields(Architecture)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise ValueError(f"it has the unknown key {unknown[0]!r}")
    return Architecture(**content)


def _of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """Return the architecture, with the published stride and width of heads, which no shape tells."""
    width, _, patch, _ = shapes["patches.weight"]
    side = math.isqrt(shapes["position"][1] - 1)
    blocks = find_blocks(shapes.items())
    if not blocks:
        raise ValueError("its tensors have no transformer blocks")
    inner = shapes["blocks.0.attention.out.weight"][1]
    return Architecture(
        classes=shapes["head.weight"][0],
        size=side * STRIDE,
        patch=patch,
        pad=max(0, patch - STRIDE),
        width=width,
        depth=len(blocks),
        heads=max(1, inner // HEAD_WIDTH),
        head_width=min(HEAD_WIDTH, inner),
        hidden=shapes[blocks[0].ffn[0]][0],
        head="softmax" if "head.bias" in shapes else "cosface",
    )
