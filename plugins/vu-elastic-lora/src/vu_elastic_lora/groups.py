"""Which low-rank changes share a rank, and which ranks they may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import attrs

Version = Literal["maximal", "heuristic", "minimal"]
VERSIONS: tuple[Version, ...] = get_args(Version)
"""Names of assignments that every search space has."""


@attrs.frozen
class RankGroup:
    """Low-rank changes that always have the same rank.

    Args:
        names: of the weights that they change, such as ``unet.mid_block...attn1.to_q.weight``.
        search_space: the ranks that were trained, from the largest to the smallest.
    """

    names: tuple[str, ...]
    search_space: tuple[int, ...]

    def rank(self, version: str) -> int:
        """Return the rank of a version; see `rank_of`."""
        return rank_of(self.search_space, version)


def rank_of(search_space: Sequence[int], version: str) -> int:
    """Return the rank that a version takes from a search space ``s`` of ``n`` ranks.

    ``maximal``: ``s[0]``; ``heuristic``: ``s[(n - 1) // 2]``; ``minimal``: ``s[n - 1]``.

    Args:
        search_space: ranks from the largest to the smallest, at least one.
        version: one of the three words.

    Raises:
        ValueError: another word.

    Example:
        >>> [rank_of((16, 8, 4, 2), version) for version in VERSIONS]
        [16, 8, 2]

    Source:
        FADE / SPARE, arXiv 2602.07058; the heuristic is that of NLS, Muñoz et al. 2024, arXiv 2404.10934.
    """
    place = {"maximal": 0, "heuristic": (len(search_space) - 1) // 2, "minimal": len(search_space) - 1}
    if version not in place:
        raise ValueError(f"must be one of {', '.join(map(repr, VERSIONS))}, but is {version!r}")
    return search_space[place[version]]


def search_space_problem(ranks: Sequence[Any]) -> str | None:
    """Return what is wrong with a search space, or ``None``.

    Example:
        >>> search_space_problem((8, 8, 4))
        'must be strictly descending, but 8 follows 8'
    """
    if not ranks:
        return "must name at least one rank"
    for rank in ranks:
        if isinstance(rank, bool) or not isinstance(rank, int):
            return f"must hold whole numbers, but holds {rank!r}"
        if rank < 1:
            return f"must hold ranks of at least 1, but holds {rank}"
    for larger, smaller in pairwise(ranks):
        if smaller >= larger:
            return f"must be strictly descending, but {smaller} follows {larger}"
    return None


def grouped(names: Iterable[str], by: str) -> tuple[tuple[str, ...], ...]:
    """Put weights together that share a rank, in the order of the first one of each group.

    Args:
        names: of weights, such as ``unet.attn1.to_q.weight``.
        by: ``layer``: the weights of one block, see `block_of`; ``pair``: every weight for itself.

    Example:
        >>> grouped(["u.attn1.to_q.weight", "u.attn2.to_q.weight", "u.attn1.to_out.0.weight"], "layer")
        (('u.attn1.to_q.weight', 'u.attn1.to_out.0.weight'), ('u.attn2.to_q.weight',))
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(block_of(name) if by == "layer" else name, []).append(name)
    return tuple(map(tuple, groups.values()))


def block_of(name: str) -> str:
    """Return the block that a module lies in; a number at the end is a place in a list, no module of its own.

    Example:
        >>> block_of("unet.attn1.to_q.weight"), block_of("unet.attn1.to_out.0.weight")
        ('unet.attn1', 'unet.attn1')
    """
    words = name.removesuffix(".weight").split(".")
    while words and words[-1].isdigit():
        words.pop()
    return ".".join(words[:-1])


def rank_groups(names: Iterable[str], by: str, search_space: Sequence[int]) -> tuple[RankGroup, ...]:
    """Return the groups of `grouped`, all with the same search space."""
    return tuple(RankGroup(group, tuple(search_space)) for group in grouped(names, by))


def assigned(groups: Iterable[RankGroup], version: str) -> dict[str, int]:
    """Return the rank of every weight in a version; see `rank_of`.

    Example:
        >>> assigned([RankGroup(("a.weight",), (8, 4, 2))], "heuristic")
        {'a.weight': 4}
    """
    return spread(groups, [group.rank(version) for group in groups])


def spread(groups: Iterable[RankGroup], ranks: Iterable[int]) -> dict[str, int]:
    """Return the rank of every weight from one rank per group."""
    return {name: rank for group, rank in zip(groups, ranks, strict=True) for name in group.names}


def gathered(groups: Iterable[RankGroup], ranks: Mapping[str, int]) -> tuple[int, ...]:
    """Return the rank of every group from the ranks of the weights; the reverse of `spread`."""
    return tuple(ranks[group.names[0]] for group in groups)


def ranks_text(ranks: Iterable[int]) -> str:
    """Return how many groups have which rank, from the largest rank on.

    Example:
        >>> ranks_text([8, 16, 8])
        '1 x 16, 2 x 8'
    """
    counts = Counter(ranks)
    return ", ".join(f"{counts[rank]} x {rank}" for rank in sorted(counts, reverse=True))
