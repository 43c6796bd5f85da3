"""Arithmetic on edits: the opposite of one, a part of its strength, the sum of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import attrs
import torch
from torch import Tensor, nn

from vu_core.adapters.deltas import (
    base_of,
    check_finite,
    exact_delta,
    full_rank,
    matrix_shape,
    precision,
    rounded,
    unusable,
)
from vu_core.edit import Edit, LowRank, Part, Replace, Sparse
from vu_core.edit_file import edit_digest
from vu_core.errors import EditError, did_you_mean

STRATEGIES = ("sum", "orthogonal")
"""How `combined` adds up edits that change the same tensor."""

SAME_DIRECTION = 1e-6
"""A change of which no larger share is new has the direction of earlier ones: float32 factors know no better."""


def negated(edit: Edit, network: nn.Module | None = None) -> Edit:
    """Return the edit that does the opposite: every change times -1.

    Of `LowRank` parts all A change their sign and no B, of `Sparse` parts the values; alpha, mask and facts are kept,
    and twice is the identity, bit for bit. `Replace` parts become ``base - (new - base)``, rounded once.

    Args:
        edit: any edit.
        network: the network it was made for; only `Replace` parts need it.

    Raises:
        EditError: a `Replace` part and no network (``VU-E061``), or it does not fit the network (``VU-E054``).

    Example:
        >>> part = LowRank(torch.ones(1, 2), torch.ones(1, 1), alpha=3.0)
        >>> negated(Edit({"w": part})).parts["w"].delta().tolist()
        [[-3.0, -3.0]]

    Source:
        Task arithmetic, Ilharco et al. 2022, https://arxiv.org/abs/2212.04089.
    """
    return scaled(edit, -1.0, network)


def scaled(edit: Edit, factor: float, network: nn.Module | None = None) -> Edit:
    """Return the edit with every change multiplied: ``W + factor * delta``.

    `LowRank` parts keep A and B, and alpha is multiplied; a negative factor changes the sign of A, so that alpha stays
    positive, as loaders of LoRA files expect. `Sparse` values are multiplied, and `Replace` parts become
    ``base + factor * (new - base)``, both in float64 and rounded once.

    Args:
        edit: any edit.
        factor: any finite number. 1 returns the edit itself; 0 returns one without parts, under which the model
            is bit-identical to the base, and which may be an identity.
        network: the network the edit was made for; only `Replace` parts need it.

    Raises:
        EditError: the factor is not finite (``VU-E060``), a change becomes so (``VU-E052``), there is a `Replace` part
            and no network (``VU-E061``), or it does not fit the network (``VU-E054``).

    Example:
        >>> part = LowRank(torch.ones(1, 2), torch.ones(1, 1), alpha=3.0)
        >>> scaled(Edit({"w": part}), 0.5).parts["w"].alpha
        1.5
    """
    if not math.isfinite(factor):
        raise unusable(f"The factor of an edit is {factor}.", "Choose a finite number; 1 is the edit as it is.")
    if factor == 1:
        return edit
    if factor == 0:
        return attrs.evolve(edit, parts={}, may_be_identity=True)
    return attrs.evolve(edit, parts={name: _times(name, part, factor, network) for name, part in edit})


def combined(
    edits: Sequence[Edit], weights: Sequence[float], *, strategy: str = "sum", network: nn.Module | None = None
) -> Edit:
    """Return one edit that makes the changes of several: ``W + sum_i w_i delta_i``.

    Per tensor, the first that applies:

    - Only one edit changes it: that part, multiplied as by `scaled`; with weight 1 the very part.
    - One of them is a `Replace`: ``base + sum``, added up in float64 and rounded once, a `Replace`.
    - All are `LowRank` under the same mask, or none: the same function in factors side by side,
      ``B = [w_1 gamma_1 B_1, w_2 gamma_2 B_2, ...]``, ``A = [A_1; A_2; ...]``, ``alpha = rank``, ``gamma_i`` the scale
      of part i. A rank above ``min(out, in)`` is brought down to it as in the next case.
    - Some are `LowRank`: the sum, in float64 and rounded once, as factors of rank ``min(out, in)``, one of them the
      identity; masked to the union of the supports, unless one is unmasked. Unlike `Sparse` values, factors are
      computed beside weights in half precision, which would round such a change away.
    - All are `Sparse`: the sum over the union of the supports, in float64 and rounded once, a `Sparse`.

    The strategy ``orthogonal`` lets a direction that several edits share count once. In the order given, each tensor's
    change loses what it has in common with the earlier ones (Frobenius inner product, float64)::

        delta~_i = delta_i - sum_{j<i} <delta_i, delta~_j> / <delta~_j, delta~_j> delta~_j        W + sum_i w_i delta~_i

    A change of which less than 1e-6 is left counts as zero. ``delta~_i`` is a combination of the ``delta_j``, so that
    the cases above hold with weights of the tensor's own.

    Args:
        edits: at least one, of the same base; with a `Replace` part among them, of the same parents, too.
        weights: one per edit, finite; 0 leaves it out, with ``orthogonal`` after the others have given way to it.
        strategy: ``sum`` or ``orthogonal``.
        network: the network they were made for; only `Replace` parts need it.

    Returns:
        An edit of the method ``composition`` whose facts name ``components`` (digest, method and weight of each) and
        ``strategy``. Those of a single edit with weight 1 are kept besides. Equal arguments give equal bytes.

    Raises:
        EditError: no edits, other numbers of weights, a weight that is not finite, an unknown strategy (``VU-E060``);
            edits of different bases (``VU-E053``) or shapes (``VU-E062``); a `Replace` part and no network
            (``VU-E061``), or it does not fit the network (``VU-E054``); a sum that is not finite (``VU-E052``).

    Example:
        >>> one, other = (Sparse(torch.tensor([i]), torch.tensor([2.0]), (2, 2)) for i in (1, 3))
        >>> combined([Edit({"w": one}), Edit({"w": other})], [1.0, 0.5]).parts["w"].delta().tolist()
        [[0.0, 2.0], [0.0, 1.0]]

    Source:
        Task arithmetic, Ilharco et al. 2022, https://arxiv.org/abs/2212.04089; ``orthogonal``: Gram-Schmidt.
    """
    _check_arguments(edits, weights, strategy)
    parts: dict[str, Part] = {}
    for name in sorted({name for edit in edits for name in edit.parts}):
        found = [
            (edit.parts[name], float(weight)) for edit, weight in zip(edits, weights, strict=True) if name in edit.parts
        ]
        terms = _orthogonal(name, found, network) if strategy == "orthogonal" else found
        part = _sum(name, [(part, weight) for part, weight in terms if weight != 0], network)
        if part is not None:
            parts[name] = part
    components = [
        {"digest": edit_digest(edit), "method": edit.method, "weight": float(weight)}
        for edit, weight in zip(edits, weights, strict=True)
    ]
    alone = len(edits) == 1 and weights[0] == 1
    return Edit(
        parts,
        base=edits[0].base,
        parents=edits[0].parents,
        method="composition",
        facts={**(edits[0].facts if alone else {}), "components": components, "strategy": strategy},
        may_be_identity=all(edit.may_be_identity for edit in edits),
    )


Term = tuple[Part, float]
"""A part and its weight."""


def _check_arguments(edits: Sequence[Edit], weights: Sequence[float], strategy: str) -> None:
    if not edits:
        raise unusable("There are no edits to combine.", "Name at least one.")
    if len(edits) != len(weights):
        problem = f"The number of edits is {len(edits)}, but there are {len(weights)} weights."
        raise unusable(problem, "Give one weight per edit.")
    wrong = [str(weight) for weight in weights if not math.isfinite(weight)]
    if wrong:
        raise unusable(f"A weight is {wrong[0]}.", "Give finite numbers; 1 takes an edit as it is.")
    if strategy not in STRATEGIES:
        problem = f"There is no strategy {strategy!r}.{did_you_mean(strategy, STRATEGIES)}"
        raise unusable(problem, f"Choose one of: {', '.join(STRATEGIES)}.")
    first = edits[0]
    whole = any(isinstance(part, Replace) for edit in edits for _, part in edit)
    for edit in edits[1:]:
        # Changes that are added mean the same wherever they lie; a whole tensor holds what its parents changed, too.
        if edit.base != first.base or (whole and edit.parents != first.parents):
            on = "edits of the same weights"
            if edit.base != first.base:
                on = f"weights ({first.base[:12] or '(not named)'} and {edit.base[:12] or '(not named)'})"
            raise EditError(
                "VU-E053",
                f"The edits cannot be combined: they were made on different {on}.",
                "Combine edits of runs that began with the same model.",
            )


def _times(name: str, part: Part, factor: float, network: nn.Module | None) -> Part:
    """Return a part whose change is multiplied by a factor other than 0; by 1, the part itself."""
    if factor == 1:
        return part
    match part:
        case LowRank():
            a = -part.A if factor < 0 else part.A
            alpha = part.alpha * abs(factor)
            check_finite(name, torch.tensor(alpha))
            return attrs.evolve(part, A=a, alpha=alpha)
        case Sparse():
            values = (part.values.double() * factor).to(part.values.dtype)
            check_finite(name, values)
            return attrs.evolve(part, values=values)
        case Replace():
            return _replaced(name, [(part, factor)], network)


def _sum(name: str, terms: Sequence[Term], network: nn.Module | None) -> Part | None:
    """Return the part that makes all changes, each with its weight; ``None`` for no change."""
    if not terms:
        return None
    if len(terms) == 1:
        return _times(name, *terms[0], network)
    _check_one_shape(name, [part for part, _ in terms])
    if any(isinstance(part, Replace) for part, _ in terms):
        return _replaced(name, terms, network)
    if not any(isinstance(part, LowRank) for part, _ in terms):
        return _sparse(name, terms)
    low = [(part, weight) for part, weight in terms if isinstance(part, LowRank)]
    out, width = matrix_shape(low[0][0])
    one_mask = all(_same_mask(part.mask, low[0][0].mask) for part, _ in low)
    if len(low) == len(terms) and one_mask and sum(part.rank for part, _ in low) <= min(out, width):
        return _side_by_side(name, low)
    return _dense(name, terms)


def _check_one_shape(name: str, parts: Sequence[Part]) -> None:
    for one, other in combinations(parts, 2):
        # Factors know the tensor as a matrix only.
        shapes = [_shape(one), _shape(other)]
        if LowRank in (type(one), type(other)):
            shapes = [matrix_shape(one), matrix_shape(other)]
        if shapes[0] != shapes[1]:
            raise EditError(
                "VU-E062",
                f"The edits cannot be combined: they change {name!r} in the shapes {shapes[0]} and {shapes[1]}.",
                "Combine edits that were made for the same model.",
            )


def _shape(part: Part) -> tuple[int, ...]:
    match part:
        case LowRank():
            return matrix_shape(part)
        case Sparse():
            return tuple(part.shape)
        case Replace():
            return tuple(part.tensor.shape)


def _same_mask(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one.cpu(), other.cpu())


def _side_by_side(name: str, terms: Sequence[tuple[LowRank, float]]) -> LowRank:
    dtype = precision(*(part for part, _ in terms))
    columns = [part.B.cpu().double() * (weight * part.alpha / part.rank) for part, weight in terms]
    b = torch.cat(columns, dim=1).to(dtype)
    a = torch.cat([part.A.cpu().to(dtype) for part, _ in terms])
    check_finite(name, a, b)
    return LowRank(A=a, B=b, alpha=float(a.shape[0]), mask=terms[0][0].mask)


def _dense(name: str, terms: Sequence[Term]) -> LowRank:
    shape = matrix_shape(terms[0][0])
    total = torch.zeros(shape, dtype=torch.float64)
    support = torch.zeros(shape, dtype=torch.bool)
    for part, weight in terms:
        total += weight * exact_delta(name, part).reshape(shape)
        support |= _support(part, shape)
    made = full_rank(total, None if bool(support.all()) else support, precision(*(part for part, _ in terms)))
    check_finite(name, made.A, made.B)
    return made


def _support(part: Part, shape: tuple[int, int]) -> Tensor:
    """Return where a part may change something, ``(out, in)``."""
    if isinstance(part, LowRank):
        return torch.ones(shape, dtype=torch.bool) if part.mask is None else part.mask.cpu()
    support = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
    if isinstance(part, Sparse):
        support[part.indices.cpu()] = True
    return support.reshape(shape)


def _sparse(name: str, terms: Sequence[Term]) -> Sparse:
    parts = [(part, weight) for part, weight in terms if isinstance(part, Sparse)]
    indices: Tensor = torch.cat([part.indices.cpu() for part, _ in parts]).unique()  # type: ignore[no-untyped-call]
    values = torch.zeros(len(indices), dtype=torch.float64)
    for part, weight in parts:
        values.index_add_(0, torch.searchsorted(indices, part.indices.cpu()), weight * part.values.cpu().double())
    small = values.to(precision(*(part for part, _ in terms)))
    check_finite(name, small)
    return Sparse(indices, small, parts[0][0].shape)


def _replaced(name: str, terms: Sequence[Term], network: nn.Module | None) -> Replace:
    # The order of the parts does not matter, but a Replace shows whether the base is at hand and has its shape.
    whole = next(part for part, _ in terms if isinstance(part, Replace))
    base = base_of(name, whole, network)
    total = base.double()
    for part, weight in terms:
        total = total + weight * exact_delta(name, part, network).reshape(base.shape)
    new = rounded(total, base.dtype)
    check_finite(name, new)
    return Replace(new)


def _orthogonal(name: str, terms: Sequence[Term], network: nn.Module | None) -> list[Term]:
    """Return the same parts with the weights that make each change give way to the earlier ones (Gram-Schmidt)."""
    if len(terms) == 1:
        return list(terms)
    _check_one_shape(name, [part for part, _ in terms])
    weights = torch.zeros(len(terms), dtype=torch.float64)
    kept: list[tuple[Tensor, Tensor]] = []  # direction, and its share of each change
    for row, (part, weight) in enumerate(terms):
        delta = exact_delta(name, part, network).flatten()
        check_finite(name, delta)  # NaN is below every bound and would be left out in silence
        rest, shares = delta.clone(), torch.zeros_like(weights)
        shares[row] = 1.0
        for direction, its_shares in kept:
            # What is left is projected, not the change itself: equal on paper, and stable where changes are alike.
            common = torch.dot(rest, direction) / torch.dot(direction, direction)
            rest, shares = rest - common * direction, shares - common * its_shares
        if torch.linalg.vector_norm(rest) > SAME_DIRECTION * torch.linalg.vector_norm(delta):
            kept.append((rest, shares))
            weights += weight * shares
    return [(part, float(weight)) for (part, _), weight in zip(terms, weights, strict=True)]
