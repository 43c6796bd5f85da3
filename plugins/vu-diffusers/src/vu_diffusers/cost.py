"""Cost of one pass of a UNet, from the shapes of its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from vu_core import StoredTensor

_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(\w+)\.")


def forward_gflops(tensors: Iterable[StoredTensor], *, size: int, levels: int, words: int) -> float:
    """Return 10^9 multiply-adds of one pass over one latent.

    Every weight is used once per position of its feature map; attention adds ``2 N M C`` for N queries and M keys.

    Args:
        tensors: stored tensors of the UNet.
        size: side of the latent, in latent pixels.
        levels: number of resolutions of the UNet.
        words: tokens of a caption.

    Example:
        >>> conv = StoredTensor("conv_in.weight", "F32", (10, 4, 3, 3))
        >>> forward_gflops([conv], size=8, levels=1, words=77) * 1e9
        23040.0
    """
    total = 0.0
    for tensor in tensors:
        if not tensor.name.endswith(".weight") or len(tensor.shape) < 2:
            continue
        positions = _positions(tensor.name, size, levels)
        keys = words if ".attn2." in tensor.name else positions
        used = keys if ".attn2.to_k." in tensor.name or ".attn2.to_v." in tensor.name else positions
        total += math.prod(tensor.shape) * used
        if tensor.name.endswith(".to_q.weight"):
            total += 2 * positions * keys * tensor.shape[0]
    return total / 1e9


def _positions(name: str, size: int, levels: int) -> int:
    """Return the number of positions of the feature map that a weight sees."""
    if name.startswith("time_") or "time_emb_proj" in name:
        return 1
    level = 0
    if name.startswith("mid_block"):
        level = levels - 1
    elif match := _BLOCK.match(name):
        side, index, part = match.group(1), int(match.group(2)), match.group(3)
        level = index if side == "down_blocks" else levels - 1 - index
        level += {"downsamplers": 1, "upsamplers": -1}.get(part, 0)
    return max(size >> max(level, 0), 1) ** 2  # below 0: weights of another configuration, which loading refuses
