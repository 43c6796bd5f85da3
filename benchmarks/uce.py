"""UCE on the cross-attention of Stable Diffusion 1.4: one solve for all layers against one inverse per layer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vu_concept_editing.closed_form import Columns
from vu_concept_editing.scales import Scales
from vu_concept_editing.uce import solved
from vu_core import LowRank

WIDTHS = (320,) * 2 + (640,) * 2 + (1280,) * 2 + (1280,) + (1280,) * 3 + (640,) * 3 + (320,) * 3
"""Of the 16 blocks: down, middle, up; each has ``to_k`` and ``to_v`` of this many rows."""
TEXT = 768
CONCEPTS, PRESERVED = 10, 100
SCALES = Scales(erase=1.0, preserve=1.0, regularization=0.5)
MOST_SECONDS = 10.0
EQUAL = 1e-9


def make() -> tuple[dict[str, Tensor], Columns]:
    """Return 32 random matrices, of the size that trained ones have, and random rows of text embeddings."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    layers = {
        f"unet.{block}.attn2.{kind}.weight": normal(width, TEXT, dtype=torch.float32) / TEXT**0.5
        for block, width in enumerate(WIDTHS)
        for kind in ("to_k", "to_v")
    }
    return layers, Columns(normal(TEXT, CONCEPTS), normal(TEXT, CONCEPTS), normal(TEXT, PRESERVED))


def per_layer(layers: Mapping[str, Tensor], columns: Columns, scales: Scales) -> dict[str, Tensor]:
    """Return the new weights as the paper writes them: a straightforward formulation, which inverts for every layer."""
    c, g, p = columns.concepts, columns.guides, columns.preserved
    e, q, weight_of_base = scales.erase, scales.preserve, scales.regularization
    found = {}
    for name, stored in layers.items():
        w = stored.double()
        values = weight_of_base * w + e * (w @ g) @ c.T + q * (w @ p) @ p.T
        m = weight_of_base * torch.eye(TEXT, dtype=w.dtype) + e * c @ c.T + q * p @ p.T
        found[name] = values @ torch.linalg.inv(m)
    return found


def ours(layers: Mapping[str, Tensor], columns: Columns, scales: Scales) -> dict[str, Tensor]:
    """Return the new weights out of the parts of the edit."""
    found = {}
    for name, part in solved(layers, columns, scales, ("to_k", "to_v")):
        if not isinstance(part, LowRank):
            raise TypeError(f"{name} should be a low-rank part, but is a {type(part).__name__}")
        found[name] = layers[name].double().addmm_(part.B, part.A)
    return found


def compare(pairs: int) -> list[tuple[Any, ...]]:
    """Time both, taking turns, after one warm-up each; they must agree within 1e-9."""
    layers, columns = make()
    sides = (ours, per_layer)
    results = [side(layers, columns, SCALES) for side in sides]
    gap = max(float((results[0][name] - results[1][name]).abs().max()) for name in layers)
    if not gap <= EQUAL:
        raise RuntimeError(f"the two solutions differ by {gap:.1e}")
    seconds: list[list[float]] = [[], []]
    for _ in range(pairs):
        for side, taken in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            side(layers, columns, SCALES)
            taken.append(time.perf_counter() - start)
    one, other = map(statistics.median, seconds)
    ratios = [theirs / mine for mine, theirs in zip(*seconds, strict=True)]
    name = f"SD 1.4 size: UCE, {CONCEPTS} concepts, {PRESERVED} preserved"
    shares = [mine / MOST_SECONDS for mine in seconds[0]]
    return [
        (f"{name}, speed-up", ">=5", ratios, one, other, "s", f"(apart by at most {gap:.0e})"),
        (f"{name} / 10 s", "<=1", shares, one, MOST_SECONDS),
    ]
