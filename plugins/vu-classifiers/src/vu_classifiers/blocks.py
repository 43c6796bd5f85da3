"""Finding the blocks of a transformer by the names and shapes of its tensors; nothing is loaded for it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from vu_core import TransformerBlock

NUMBERED = re.compile(r"\D*\d+")
"""A word of a name that counts: ``0``, ``encoder_layer_0``."""

Shapes = Mapping[str, tuple[int, ...]]


def find_blocks(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[TransformerBlock, ...]:
    """Return the transformer blocks among named tensors, in the order of their numbers.

    A block is the innermost numbered part of a network, such as ``blocks.3`` or ``encoder.layers.encoder_layer_3``,
    that holds

        W_1 (m, d), W_2 (d, m), m > d    exactly one such pair, one weight behind the other: the feed-forward network
        W (., d) or (d, .)               at least one other matrix as wide as its stream: the attention

    Queries, keys and values may be one matrix ``(3 d, d)`` or three; a matrix is a tensor of two dimensions whose name
    ends in ``weight``. Weights stand in the order of their names, where 10 follows 9. What lies outside of blocks, such
    as a head, is left out. Blocks without attention (MLP-Mixer, ConvNeXt) and those with a gated feed-forward network,
    which has three matrices, are no such blocks.

    Args:
        tensors: name and shape of every tensor.

    Returns:
        Names as they were given; empty where the network has no such blocks.

    Example:
        >>> shapes = {"qkv": (12, 4), "proj": (4, 4), "mlp.fc1": (16, 4), "mlp.fc2": (4, 16)}
        >>> (block,) = find_blocks((f"blocks.0.{name}.weight", shape) for name, shape in shapes.items())
        >>> block.name, block.ffn
        ('blocks.0', ('blocks.0.mlp.fc1.weight', 'blocks.0.mlp.fc2.weight'))
        >>> block.attention
        ('blocks.0.proj.weight', 'blocks.0.qkv.weight')
    """
    matrices = {name: shape for name, shape in tensors if len(shape) == 2 and name.endswith("weight")}
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(matrices, key=_counting):
        for part in _numbered_parts(name):
            parts[part].append(name)
    found: list[TransformerBlock] = []
    for part in sorted(parts, key=lambda part: (-part.count("."), _counting(part))):  # the innermost first
        inside = any(block.name.startswith(f"{part}.") for block in found)
        block = None if inside else _block(part, parts[part], matrices)
        if block is not None:
            found.append(block)
    return tuple(sorted(found, key=lambda block: _counting(block.name)))


def _numbered_parts(name: str) -> Iterator[str]:
    """Yield the beginnings of a name that end in a number: ``a.0`` and ``a.0.b.1`` of ``a.0.b.1.weight``."""
    words = name.split(".")
    for count in range(1, len(words)):
        if NUMBERED.fullmatch(words[count - 1]):
            yield ".".join(words[:count])


def _block(part: str, names: list[str], matrices: Shapes) -> TransformerBlock | None:
    """Return the block that a part of the network is, if it is one."""
    pairs = [(first, second) for first, second in pairwise(names) if _is_ffn(matrices, first, second)]
    if len(pairs) != 1:
        return None
    width = matrices[pairs[0][0]][1]
    attention = tuple(name for name in names if name not in pairs[0] and width in matrices[name])
    return TransformerBlock(part, pairs[0], attention) if attention else None


def _is_ffn(matrices: Shapes, first: str, second: str) -> bool:
    hidden, width = matrices[first]
    return hidden > width and matrices[second] == (width, hidden)


def _counting(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names by their size."""
    words = re.split(r"(\d+)", name)
    return [(int(word), "") if word.isdigit() else (-1, word) for word in words]
