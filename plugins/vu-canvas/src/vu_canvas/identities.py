"""The 100 identities of canvas: one object in one style, as class names and as concepts."""

from __future__ import annotations

from collections.abc import Mapping

from vu_canvas.concepts import Pair, all_pairs


def identity(pair: Pair) -> str:
    """Return the class name of a pair.

    Example:
        >>> identity(("star", "neon"))
        'star-neon'
    """
    return "-".join(pair)


IDENTITIES: Mapping[str, str] = {identity(pair): f"object:{pair[0]}+style:{pair[1]}" for pair in all_pairs()}
"""Class name to concept, in the order of the logits of ``canvas-vit``: object by object, style by style."""
