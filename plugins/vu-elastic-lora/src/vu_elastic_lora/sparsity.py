"""How much of an adapter is zero, and what it weighs.

With the change of a module ``Delta = gamma * (B A) * M``, mask and scale included::

    delta_zero_fraction         sum of zeros(Delta) / sum of numel(Delta)       exact zeros; 0.0 without any Delta
    zero_percent                100 * mean(|Delta| <= threshold)                per module
    overall                     the same over all modules, weighted by numel(Delta)
    overall_unweighted          mean of the modules

One change is made at a time: no more than the largest of them is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from vu_core import LowRank, Sparse
from vu_elastic_lora.reading import Change

THRESHOLD = 1e-6
"""Up to this size a change counts as zero in ``zero_percent``."""


@attrs.frozen
class ModuleReport:
    """What is known about the change of one module.

    Args:
        module: its name; kind: ``low-rank``, ``sparse`` or ``replace``.
        tuned: how many numbers store the change; bytes: their size, masks and indices included.
        rank, alpha, gamma: of a low-rank change; gamma = alpha / rank.
        density: share of the weights that may change, where a mask or a list of indices says so.
        numel: numbers in Delta; zeros: how many of them are exactly zero.
        zero_percent: see above; norm: Frobenius norm of Delta.

    A replaced tensor has no Delta without the weights of the base, so its last four are ``None``.
    """

    module: str
    kind: str
    tuned: int
    bytes: int
    rank: int | None = None
    alpha: float | None = None
    gamma: float | None = None
    density: float | None = None
    numel: int | None = None
    zeros: int | None = None
    zero_percent: float | None = None
    norm: float | None = None


def report(change: Change, threshold: float = THRESHOLD) -> ModuleReport:
    """Look at the change of one module.

    Args:
        change: what `vu_elastic_lora.reading.read_adapter` found.
        threshold: numbers up to this size count in ``zero_percent``; at least 0.

    Example:
        >>> import torch
        >>> factors = LowRank(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0]]), alpha=1.0)
        >>> found = report(Change("head", factors, bytes=12))
        >>> found.zero_percent, found.norm
        (50.0, 2.0)
    """
    part = change.part
    if isinstance(part, LowRank):
        return ModuleReport(
            change.module,
            "low-rank",
            tuned=part.A.numel() + part.B.numel(),
            bytes=change.bytes,
            rank=part.rank,
            alpha=part.alpha,
            gamma=part.alpha / part.rank,
            density=None if part.mask is None else int(part.mask.sum()) / part.mask.numel(),
            **_sizes(change.module, part, threshold),
        )
    if isinstance(part, Sparse):
        held, numel = part.values.numel(), math.prod(part.shape)
        return ModuleReport(
            change.module,
            "sparse",
            tuned=held,
            bytes=change.bytes,
            density=held / numel if numel else None,
            **_sizes(change.module, part, threshold),
        )
    return ModuleReport(change.module, "replace", tuned=part.tensor.numel(), bytes=change.bytes)


def _sizes(module: str, part: LowRank | Sparse, threshold: float) -> dict[str, Any]:
    """Return what only Delta itself tells; it is gone when this returns."""
    from vu_core.adapters import delta_size

    exact = delta_size(module, part)
    near = delta_size(module, part, threshold=threshold)
    percent = 100 * near.zeros / near.numel if near.numel else None
    return {"numel": exact.numel, "zeros": exact.zeros, "zero_percent": percent, "norm": exact.norm}


@attrs.frozen
class Totals:
    """What is known about a whole adapter; the names are those at the head of this file.

    Args:
        tuned: how many numbers store the changes; bytes: size of the tensors that do.
        zero_percent, zero_percent_unweighted: ``None`` when no module has a Delta.
        ranks: how many modules have which rank, the largest first.
        unknown: how many modules have no Delta without the base.
    """

    tuned: int
    bytes: int
    delta_zero_fraction: float
    zero_percent: float | None
    zero_percent_unweighted: float | None
    ranks: dict[int, int]
    unknown: int


def totals(reports: Sequence[ModuleReport]) -> Totals:
    """Add up what is known about the modules.

    Example:
        >>> small = ModuleReport("a", "sparse", 1, 4, numel=1, zeros=1, zero_percent=100.0)
        >>> large = ModuleReport("b", "sparse", 3, 12, numel=3, zeros=0, zero_percent=0.0)
        >>> found = totals([small, large])
        >>> found.delta_zero_fraction, found.zero_percent, found.zero_percent_unweighted
        (0.25, 25.0, 50.0)
    """
    known = [each for each in reports if each.numel]
    numel = sum(each.numel or 0 for each in known)
    percents = [(each.zero_percent or 0.0, each.numel or 0) for each in known]
    ranks = [each.rank for each in reports if each.rank is not None]
    return Totals(
        tuned=sum(each.tuned for each in reports),
        bytes=sum(each.bytes for each in reports),
        delta_zero_fraction=sum(each.zeros or 0 for each in known) / numel if numel else 0.0,
        zero_percent=sum(percent * count for percent, count in percents) / numel if numel else None,
        zero_percent_unweighted=sum(percent for percent, _ in percents) / len(percents) if percents else None,
        ranks={rank: ranks.count(rank) for rank in sorted(set(ranks), reverse=True)},
        unknown=sum(each.numel is None for each in reports),
    )


def tuned_below(reports: Iterable[ModuleReport], component: str) -> int:
    """Return how many numbers store the changes of one component, such as ``unet``."""
    return sum(each.tuned for each in reports if each.module.startswith(f"{component}."))
