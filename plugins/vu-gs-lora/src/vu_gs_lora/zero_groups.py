"""Which groups of an edit are zero, and what share of a model it tunes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from vu_core import Edit, LowRank, Replace, TransformerBlock
from vu_gs_lora.grouping import group_of

TAU_FUNCTIONAL = 1e-4
"""A group whose change is at most this share of its weights counts as zero."""
TAU_ABSOLUTE = 1e-8
"""So does one whose tensors have at most this norm."""
TAU_RELATIVE = 1e-2
"""The criterion ``relative``: at most this share of the largest group norm."""


@attrs.frozen
class GroupNorm:
    """One group of an edit.

    Args:
        name: of the block, module or tensor; weights: that it changes.
        norm: ``n_g = sqrt(sum over its tensors of ||M||_F^2)``.
        functional: ``f_g``, the norm of its changes over the norm of its weights, both Frobenius and taken together.
    """

    name: str
    weights: tuple[str, ...]
    norm: float
    functional: float


def group_norms(
    edit: Edit,
    network: nn.Module,
    blocks: Sequence[TransformerBlock],
    kind: str = "block",
    tuned: Collection[str] = (),
) -> tuple[GroupNorm, ...]:
    """Return both norms of every group of an edit, in float64.

    ::

        n_g = sqrt(sum over M in g of ||M||_F^2)                 M: factors A and B, or the change of a whole weight
        f_g = sqrt(sum over W in g of ||dW||_F^2) / sqrt(sum over W in g of ||W||_F^2)

    ``dW = (alpha / r) B A`` is what the model computes with. A new LoRA has a random A and B = 0, so only ``f_g`` tells
    that it does nothing. ``||B A||_F^2 = tr((B^T B)(A A^T))``, so no large product is built.

    Args:
        edit: the edit.
        network: with the weights that the edit changes.
        blocks: of the model.
        kind: ``block``, ``pair`` or ``matrix``.
        tuned: weights that were trained; one without a part in the edit, such as a whole weight that came back to its
            old value, has a change of zero.

    Returns:
        Groups by the order of their first weight in the network.
    """
    weights = dict(network.named_parameters())
    found: dict[str, list[tuple[str, float, float, float]]] = {}
    for name in (name for name in weights if name in edit.parts or name in tuned):
        part, weight = edit.parts.get(name), weights[name].detach()
        change = 0.0 if part is None else _squared_change(part, weight)
        for tensor, squared in _squared_tensors(name, part, change).items():
            group = group_of(kind, name.rpartition(".")[0], tensor, blocks)
            found.setdefault(group, []).append((name, squared, change, _square(weight)))
    return tuple(_joined(group, members) for group, members in found.items())


def _joined(group: str, members: Sequence[tuple[str, float, float, float]]) -> GroupNorm:
    norm = sum(squared for _, squared, _, _ in members) ** 0.5
    per_weight = {name: (change, size) for name, _, change, size in members}  # a weight with two factors counts once
    change, size = (sum(values) for values in zip(*per_weight.values(), strict=True))
    return GroupNorm(group, tuple(per_weight), norm, (change / size) ** 0.5 if size else 0.0 if not change else 1.0)


def _squared_tensors(name: str, part: Any, change: float) -> dict[str, float]:
    if isinstance(part, LowRank):
        return {f"{name}.A": _square(part.A), f"{name}.B": _square(part.B)}
    return {name: change}


def _squared_change(part: Any, weight: Tensor) -> float:
    if isinstance(part, LowRank) and part.mask is None:
        a, b = part.A.double(), part.B.double()
        return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0)) * (part.alpha / part.rank) ** 2
    if isinstance(part, Replace):
        return _square(part.tensor.to(weight.device).double() - weight.double())
    return _square(part.delta())


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double())) ** 2


def is_zero(
    group: GroupNorm,
    largest: float,
    criterion: str = "functional",
    *,
    functional: float = TAU_FUNCTIONAL,
    absolute: float = TAU_ABSOLUTE,
    relative: float = TAU_RELATIVE,
) -> bool:
    """Tell whether a group is zero.

    Args:
        group: its norms.
        largest: the largest ``n_g`` of the edit.
        criterion: ``functional``: ``n_g <= absolute or f_g <= functional``; ``absolute``: ``n_g <= absolute``;
            ``relative``: ``n_g <= relative * largest``.
        functional: threshold of ``f_g``.
        absolute: threshold of ``n_g``.
        relative: threshold of ``n_g / largest``.

    Example:
        >>> untouched = GroupNorm("block", ("w",), norm=1.6, functional=0.0)
        >>> is_zero(untouched, 2.0), is_zero(untouched, 2.0, "absolute")
        (True, False)
    """
    if criterion == "relative":
        return group.norm <= relative * largest
    return group.norm <= absolute or (criterion == "functional" and group.functional <= functional)


def zero_names(norms: Sequence[GroupNorm], criterion: str = "functional") -> tuple[str, ...]:
    """Return the names of the zero groups; see `is_zero`."""
    largest = max((group.norm for group in norms), default=0.0)
    return tuple(group.name for group in norms if is_zero(group, largest, criterion))


def group_facts(norms: Sequence[GroupNorm], kind: str) -> dict[str, Any]:
    """Return what an edit tells about its groups, as JSON values.

    The keys: ``kind``; ``names``, ``norms`` (n_g) and ``functional_norms`` (f_g), each one entry per group; ``zero``
    and ``kept``, names by the functional criterion; ``tau_functional``, ``tau_absolute`` and ``tau_relative``;
    ``zero_group_ratio`` and, by the other criteria, ``zero_group_ratio_absolute`` and ``zero_group_ratio_relative``.
    """
    zero = zero_names(norms)
    count = max(1, len(norms))
    return {
        "kind": kind,
        "names": [group.name for group in norms],
        "norms": [group.norm for group in norms],
        "functional_norms": [group.functional for group in norms],
        "zero": list(zero),
        "kept": [group.name for group in norms if group.name not in zero],
        "tau_functional": TAU_FUNCTIONAL,
        "tau_absolute": TAU_ABSOLUTE,
        "tau_relative": TAU_RELATIVE,
        "zero_group_ratio": len(zero) / count,
        "zero_group_ratio_absolute": len(zero_names(norms, "absolute")) / count,
        "zero_group_ratio_relative": len(zero_names(norms, "relative")) / count,
    }


def pruned(edit: Edit, norms: Sequence[GroupNorm]) -> Edit:
    """Return the edit with the change of its zero groups made exactly zero: ``B = 0``, other parts taken out."""
    zero = set(zero_names(norms))
    names = {name for group in norms if group.name in zero for name in group.weights}
    parts: dict[str, Any] = {}
    for name, part in edit.parts.items():
        if name not in names:
            parts[name] = part
        elif isinstance(part, LowRank):
            parts[name] = attrs.evolve(part, B=torch.zeros_like(part.B))
    return attrs.evolve(edit, parts=parts)


def tuned_facts(tuned: int, network: nn.Module) -> Mapping[str, Any]:
    """Return ``tuned_parameters`` and ``tunable_ratio``, their share of all parameters of the network."""
    return {"tuned_parameters": tuned, "tunable_ratio": tuned / sum(p.numel() for p in network.parameters())}
