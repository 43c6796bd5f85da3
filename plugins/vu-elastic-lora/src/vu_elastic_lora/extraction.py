"""Cutting a smaller adapter out of a larger one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from vu_core import Edit, EditError, LowRank, Replace, Sparse, did_you_mean
from vu_core.adapters import edit_digest
from vu_elastic_lora.groups import RankGroup, block_of, rank_groups


def groups_of(edit: Edit) -> tuple[RankGroup, ...]:
    """Return the groups of an edit with the ranks that they were trained at.

    An edit of elastic parameters says them in its facts. Any other low-rank change has one rank, its own; those of one
    block and rank make up a group.

    Args:
        edit: with at least one low-rank part.

    Raises:
        EditError: ``VU-E090`` no part is of low rank; ``VU-E092`` the parts do not have the rank that the facts name.
    """
    ranks = {name: part.rank for name, part in edit if isinstance(part, LowRank)}
    if not ranks:
        raise EditError(
            "VU-E090",
            "The edit has no low-rank part, so there is no rank to choose.",
            "Extract from a run whose parameters are elastic-lora, lora or masked-lora.",
        )
    elastic = edit.facts.get("elastic")
    if elastic is None:
        return _fixed(ranks)
    space = elastic["search_space"]
    other = [name for name, rank in ranks.items() if rank != space[0]]
    if other:
        raise EditError(
            "VU-E092",
            f"The edit says that it can be cut to the ranks {', '.join(map(str, space))}, but {other[0]!r} has the "
            f"rank {ranks[other[0]]}.",
            "Extract from the run that trained the adapter, not from what was made of its edit.",
        )
    return rank_groups(ranks, elastic["groups"], space)


def _fixed(ranks: Mapping[str, int]) -> tuple[RankGroup, ...]:
    groups: dict[tuple[str, int], list[str]] = {}
    for name, rank in ranks.items():
        groups.setdefault((block_of(name), rank), []).append(name)
    return tuple(RankGroup(tuple(names), (rank,)) for (_, rank), names in groups.items())


def extracted(edit: Edit, ranks: Mapping[str, int]) -> Edit:
    """Cut low-rank parts to smaller ranks: ``A[:r]``, ``B[:, :r]``, ``alpha' = gamma * r`` with ``gamma = alpha / R``.

    So ``alpha' / r = gamma``: the change is ``gamma * (B[:, :r] A[:r]) * M``, as it was in training. Masks and all
    other parts stay as they are. The new edit is no longer elastic: its facts name the one it was cut from.

    Args:
        edit: the whole adapter.
        ranks: rank per weight name, from 1 to that of the part; what is left out stays whole.

    Raises:
        EditError: ``VU-E091`` a name without low-rank part, or a rank that its part does not have.

    Example:
        >>> import torch
        >>> whole = Edit({"to_q.weight": LowRank(torch.ones(4, 3), torch.ones(2, 4), alpha=8.0)})
        >>> part = extracted(whole, {"to_q.weight": 1}).parts["to_q.weight"]
        >>> part.rank, part.alpha, part.delta().tolist()
        (1, 2.0, [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]])

    Source:
        FADE / SPARE, arXiv 2602.07058.
    """
    parts = dict(edit.parts)
    for name, rank in ranks.items():
        part = edit.parts.get(name)
        if not isinstance(part, LowRank):
            known = [each for each, whole in edit if isinstance(whole, LowRank)]
            text = f"The edit has no low-rank part {name!r}.{did_you_mean(name, known)}"
            raise EditError("VU-E091", text, "Name weights that the edit changes by low-rank factors.")
        if not 1 <= rank <= part.rank:
            text = f"The part {name!r} has the rank {part.rank}, so it cannot be cut to the rank {rank}."
            raise EditError("VU-E091", text, f"Choose a rank from 1 to {part.rank}.")
        parts[name] = _truncated(part, rank)
    facts = {key: value for key, value in edit.facts.items() if key != "elastic"}
    return attrs.evolve(edit, parts=parts, facts={**facts, "extracted_from": edit_digest(edit)})


def _truncated(part: LowRank, rank: int) -> LowRank:
    if rank == part.rank:
        return part
    a, b = part.A[:rank].clone(), part.B[:, :rank].contiguous()  # (rank, in), (out, rank)
    return attrs.evolve(part, A=a, B=b, alpha=part.alpha / part.rank * rank)


def tensor_bytes(edit: Edit) -> int:
    """Return the size of the tensors of an edit as they are stored, masks as bits; the header of a file comes on top.

    Example:
        >>> import torch
        >>> tensor_bytes(Edit({"w": LowRank(torch.ones(1, 3), torch.ones(2, 1), 1.0)}))
        20
    """
    return sum(_stored(part) for _, part in edit)


def _stored(part: LowRank | Sparse | Replace) -> int:
    if isinstance(part, LowRank):
        return part.A.nbytes + part.B.nbytes + (0 if part.mask is None else math.ceil(part.mask.numel() / 8))
    if isinstance(part, Sparse):
        return part.values.nbytes + 4 * part.indices.numel()
    return part.tensor.nbytes
