"""Masks that keep exactly the k highest scores, and their packed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

_CHUNK = 1 << 22
"""Elements that are histogrammed at once: bounds the temporary memory to a few dozen MB."""
_LOWEST_FINITE, _HIGHEST_FINITE = 0x0080, 0xFF7F
"""First and last bucket of finite numbers: what lies outside has all bits of the exponent set (infinity, NaN)."""


def kept(n: int, p: float) -> int:
    """Return ``floor(p * n + 1e-9)``, the number of things that a share ``p`` of ``n`` keeps.

    The small summand undoes rounding such as ``0.29 * 100 = 28.999999999999996``.

    Args:
        n: number of things, >= 0.
        p: share in [0, 1].

    Example:
        >>> kept(20, 0.33), kept(10, 0.3), kept(7, 0.5), kept(100, 0.29)
        (6, 3, 3, 29)
    """
    return math.floor(p * n + 1e-9)


def top_masks(
    scores: Mapping[str, Tensor],
    p: float,
    *,
    scope: Literal["joint", "per_tensor"] = "joint",
    ties: Literal["exact", "inclusive"] = "exact",
) -> dict[str, Tensor]:
    """Return boolean masks of the highest scores.

    With ``v`` all scores in one row (names ascending, then flat index), ``k = kept(len(v), p)`` and ``c`` the k-th
    largest: ``exact`` keeps everything above ``c`` and of the scores equal to ``c`` the first ones, k in all;
    ``inclusive`` keeps all that are at least ``c``. The k-th value comes from two histograms over the bits of the
    floats: exact, without sorting and without joining the tensors.

    Args:
        scores: finite float32 scores per name, any shapes; higher means kept.
        p: share to keep, in [0, 1]; 0 gives empty masks.
        scope: one threshold for all tensors, or one for each.
        ties: what happens to scores equal to the threshold.

    Returns:
        One boolean tensor per name in the shape and on the device of its scores.

    Raises:
        ValueError: for a share outside [0, 1], or a score that is not finite where there is something to choose.

    Example:
        >>> s = {"w": torch.tensor([0.1, 0.5, 0.5, 0.2, 0.9])}
        >>> top_masks(s, 0.4)["w"].int().tolist(), top_masks(s, 0.4, ties="inclusive")["w"].int().tolist()
        ([0, 1, 0, 0, 1], [0, 1, 1, 0, 1])
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"the share to keep must lie in [0, 1], but is {p!r}")
    if scope == "per_tensor":
        return {name: top_masks({name: score}, p, ties=ties)[name] for name, score in scores.items()}
    ordered = {name: scores[name].detach().float() for name in sorted(scores)}
    n = sum(score.numel() for score in ordered.values())
    k = kept(n, p)
    if k == 0:
        masks = {name: torch.zeros_like(score, dtype=torch.bool) for name, score in ordered.items()}
    elif k == n:
        masks = {name: torch.ones_like(score, dtype=torch.bool) for name, score in ordered.items()}
    else:
        cutoff = _kth_largest(ordered, k)
        masks = {name: score >= cutoff for name, score in ordered.items()}
        if ties == "exact":
            surplus = sum(int(mask.sum()) for mask in masks.values()) - k
            _drop_last_ties(ordered, masks, cutoff, surplus)
    return {name: masks[name] for name in scores}


def _ordered_bits(chunk: Tensor) -> Tensor:
    """Map float32 to integers in 0 .. 2^32 - 1 of the same order, with -0.0 just below 0.0."""
    bits = chunk.contiguous().view(torch.int32).long()
    return torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF) + 0x80000000


def _kth_largest(named: Mapping[str, Tensor], k: int) -> Tensor:
    """Return the k-th largest value as a float32 scalar on the CPU (k from 1)."""
    scores = list(named.values())
    high = torch.zeros(1 << 16, dtype=torch.long)
    for chunk in _chunks(scores):
        high += torch.bincount(_ordered_bits(chunk) >> 16, minlength=1 << 16).cpu()
    if bool(high[:_LOWEST_FINITE].any()) or bool(high[_HIGHEST_FINITE + 1 :].any()):
        wrong = next(name for name, score in named.items() if not bool(torch.isfinite(score).all()))
        raise ValueError(f"the scores of {wrong!r} are not all finite")
    bucket, above = _bucket_of(high, k)
    low = torch.zeros(1 << 16, dtype=torch.long)
    for chunk in _chunks(scores):
        bits = _ordered_bits(chunk)
        low += torch.bincount(bits[bits >> 16 == bucket] & 0xFFFF, minlength=1 << 16).cpu()
    value, _ = _bucket_of(low, k - above)
    signed = (bucket << 16 | value) - 0x80000000
    pattern = signed if signed >= 0 else signed ^ 0x7FFFFFFF
    return torch.tensor(pattern, dtype=torch.int32).view(torch.float32)


def _chunks(scores: Sequence[Tensor]) -> list[Tensor]:
    return [chunk for score in scores if score.numel() for chunk in torch.split(score.reshape(-1), _CHUNK)]


def _bucket_of(histogram: Tensor, k: int) -> tuple[int, int]:
    """Return the bucket of the k-th element from the top, and how many elements lie in the buckets above it."""
    from_top = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, k))
    return len(histogram) - 1 - place, int(from_top[place - 1]) if place else 0


def _drop_last_ties(scores: Mapping[str, Tensor], masks: dict[str, Tensor], cutoff: Tensor, surplus: int) -> None:
    """Take the last ``surplus`` elements equal to the cutoff out of the masks, in the order (name, flat index)."""
    for name in reversed(list(masks)):
        if surplus <= 0:
            return
        equal = (scores[name] == cutoff).flatten().nonzero().flatten()
        dropped = equal[max(0, len(equal) - surplus) :]
        flat = masks[name].flatten()
        flat[dropped] = False
        masks[name] = flat.reshape(masks[name].shape)
        surplus -= len(dropped)


def pack_mask(mask: Tensor) -> Tensor:
    """Return a boolean mask as bytes, eight elements each, row-major, the first element in the lowest bit.

    Args:
        mask: boolean, any shape.

    Returns:
        uint8 ``(ceil(n / 8),)`` on the CPU; unused bits of the last byte are 0.

    Example:
        >>> pack_mask(torch.tensor([[True, False], [True, True]])).tolist()
        [13]
    """
    flat = mask.detach().reshape(-1).to("cpu", torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).reshape(-1, 8)
    packed = torch.zeros(len(padded), dtype=torch.uint8)
    for bit in range(8):
        packed |= padded[:, bit] << bit
    return packed


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the boolean mask behind `pack_mask`.

    Args:
        packed: uint8 bytes.
        shape: shape of the mask.

    Raises:
        ValueError: when the bytes do not fit the shape, or unused bits are set.

    Example:
        >>> unpack_mask(torch.tensor([13], dtype=torch.uint8), (2, 2)).tolist()
        [[True, False], [True, True]]
    """
    n = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != (-(-n // 8),):
        raise ValueError(f"a packed mask of shape {tuple(shape)} has {-(-n // 8)} bytes, but got {tuple(packed.shape)}")
    bits = torch.stack([(packed >> bit) & 1 for bit in range(8)], dim=1).reshape(-1).bool()
    if bool(bits[n:].any()):
        raise ValueError("a packed mask has bits set behind its end")
    return bits[:n].reshape(tuple(shape))
