"""The same edit in another form: of low rank, or without showing where it is sparse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from vu_core.adapters.applying import check_fits
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
from vu_core.errors import EditError

COUNTS = ("changed_tensors", "changed_numbers")
"""Facts that no longer hold once an edit has another form."""

MOST_DRAWS = 50
"""How often a number is drawn anew that would be lost in the precision of the weights."""


def refit(edit: Edit, rank: int) -> tuple[Edit, float]:
    """Return the closest edit of plain low-rank parts, and how far it is away.

    Every change becomes its truncated singular value decomposition, the best approximation of that rank (Eckart and
    Young), computed in float64::

        delta = U S V^T        B = U_r sqrt(S_r)        A = sqrt(S_r) V_r^T        alpha = rank

    A plain low-rank part of no higher rank stays as it is. Refitting at ``min(out, in)`` is exact to rounding.

    Args:
        edit: `LowRank` parts, with or without mask, and `Sparse` parts of weights (of two or more dimensions).
        rank: highest rank of a part, at least 1; where it exceeds ``min(out, in)`` it is cut to that.

    Returns:
        The edit, and the relative error over all tensors together: ``sqrt(sum ||delta - B A||_F^2 / sum
        ||delta||_F^2)``, 0 when nothing changes. The fact ``refit`` holds ``rank``, ``relative_error`` and
        ``per_tensor``; counts of what was changed are left out of the facts, because they no longer hold.

    Raises:
        EditError: the rank is below 1 (``VU-E060``); a part replaces a tensor, or changes one that is no weight, such
            as a bias (``VU-E063``, which names all of them); a change is not finite (``VU-E052``).

    Example:
        >>> part = Sparse(torch.tensor([0, 3]), torch.tensor([3.0, 4.0]), (2, 2))
        >>> refitted, error = refit(Edit({"w": part}), rank=1)
        >>> refitted.parts["w"].rank, round(error, 6)
        (1, 0.6)
    """
    if rank < 1:
        raise unusable(f"The rank to refit to is {rank}.", "Choose a rank of at least 1.")
    _check_refittable(edit)
    parts: dict[str, Part] = {}
    squares: dict[str, tuple[float, float]] = {}
    for name, part in edit:
        delta = exact_delta(name, part).reshape(matrix_shape(part))  # (out, in)
        check_finite(name, delta)
        parts[name] = _closest(part, delta, rank)
        missed = delta - exact_delta(name, parts[name])
        squares[name] = float(missed.square().sum()), float(delta.square().sum())
    error = _relative(sum(missed for missed, _ in squares.values()), sum(whole for _, whole in squares.values()))
    per_tensor = {name: _relative(missed, whole) for name, (missed, whole) in squares.items()}
    facts = {"refit": {"rank": rank, "relative_error": error, "per_tensor": per_tensor}}
    return attrs.evolve(edit, parts=parts, facts={**_lasting(edit.facts), **facts}), error


def _check_refittable(edit: Edit) -> None:
    whole = [name for name, part in edit if isinstance(part, Replace)]
    flat = [name for name, part in edit if isinstance(part, Sparse) and len(part.shape) < 2]
    kinds = ((whole, "replaced as a whole"), (flat, "no weight of a linear map or convolution"))
    reasons = [
        f"{', '.join(map(repr, names))} {'is' if len(names) == 1 else 'are'} {what}" for names, what in kinds if names
    ]
    if reasons:
        raise EditError(
            "VU-E063",
            f"The edit cannot be refitted to low rank: {'; '.join(reasons)}.",
            "Keep the edit as it is, or train with low-rank parameters: --parameters lora.",
        )


def _closest(part: Part, delta: Tensor, rank: int) -> LowRank:
    if isinstance(part, LowRank) and part.mask is None and part.rank <= rank:
        return part
    u, s, vh = _decomposed(part, delta)  # (out, k), (k,), (k, in)
    r = min(rank, len(s))
    root = s[:r].sqrt()
    dtype = precision(part)
    a, b = (root[:, None] * vh[:r]).to(dtype), (u[:, :r] * root).to(dtype)
    return LowRank(A=a.contiguous(), B=b.contiguous(), alpha=float(r))


def _decomposed(part: Part, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(part, LowRank) and part.mask is None and part.rank < min(delta.shape):
        # Of few rows the decomposition is that of a small matrix between two orthonormal ones.
        q_b, r_b = torch.linalg.qr(part.B.cpu().double() * (part.alpha / part.rank))
        q_a, r_a = torch.linalg.qr(part.A.cpu().double().T)
        u, s, vh = torch.linalg.svd(r_b @ r_a.T)
        return q_b @ u, s, vh @ q_a.T
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return u, s, vh


def _relative(missed: float, whole: float) -> float:
    return math.sqrt(missed / whole) if whole else 0.0


def _lasting(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in COUNTS}


def densified(edit: Edit, strength: float, generator: torch.Generator, network: nn.Module) -> Edit:
    """Return the edit with dense noise wherever it changes nothing, so that its support no longer shows.

    Which weights a sparse edit changes can tell which concept it removes. Every part with a mask, and every `Sparse`
    part, is changed outside of its support S by independent noise; inside, its change stays what it was::

        delta'[i] = delta[i] for i in S, else n_i        n_i ~ N(0, (strength * rms(delta[S]))^2)

    Masked `LowRank` parts become unmasked ones of rank ``min(out, in)`` (rounded once to the precision of the factors),
    which are computed beside weights in half precision as before. `Sparse` parts become `Replace` parts; a number that
    the precision of the base would round away is drawn again, so that every weight differs from the base.

    The noise hides the support inside of a tensor. It hides neither which tensors are in the edit, nor that changes
    inside the support are larger on average; a ``strength`` near 1 hides the latter at the price of more damage.
    Unmasked low-rank and `Replace` parts have no support to hide and stay as they are.

    Args:
        edit: any edit.
        strength: standard deviation of the noise in units of the root mean square of the tensor's change, > 0.
        generator: on the CPU; the tensors draw from it in the order of their names.
        network: the network the edit was made for.

    Returns:
        The edit, with ``densified`` (the strength) among its facts, and without counts of what was changed.

    Raises:
        EditError: the strength is not positive and finite (``VU-E060``); a part does not fit the network
            (``VU-E054``); the noise is too small for the precision of the weights (``VU-E064``).

    Example:
        >>> network = nn.Linear(4, 4)
        >>> edit = Edit({"weight": Sparse(torch.tensor([5]), torch.tensor([0.5]), (4, 4))})
        >>> dense = densified(edit, 0.1, torch.Generator().manual_seed(0), network)
        >>> int((dense.parts["weight"].tensor != network.weight).sum())
        16

    Source:
        arXiv 2603.06640: the locations of a sparse update reveal what was unlearned.
    """
    if not 0 < strength < math.inf:
        raise unusable(f"The strength of the noise is {strength}.", "Choose a number above 0, such as 0.1.")
    parts: dict[str, Part] = {}
    for name, part in edit:
        check_fits(network, name, part)
        if isinstance(part, Sparse):
            base = base_of(name, part, network)
            support = torch.zeros(base.numel(), dtype=torch.bool)
            support[part.indices.cpu()] = True
            parts[name] = _dense_replace(name, part, base, support.reshape(base.shape), strength, generator)
        elif isinstance(part, LowRank) and part.mask is not None:
            parts[name] = _dense_low_rank(name, part, part.mask.cpu(), strength, generator)
        else:
            parts[name] = part
    return attrs.evolve(edit, parts=parts, facts={**_lasting(edit.facts), "densified": strength})


def _noise(delta: Tensor, support: Tensor, strength: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """Return noise in the shape of a change, and its standard deviation: a share of what changes on the support."""
    values = delta[support]
    deviation = strength * math.sqrt(float(values.square().mean())) if len(values) else 0.0
    return torch.randn(delta.shape, generator=generator, dtype=torch.float64) * deviation, deviation


def _dense_low_rank(name: str, part: LowRank, mask: Tensor, strength: float, generator: torch.Generator) -> LowRank:
    delta = exact_delta(name, part)
    noise, _ = _noise(delta, mask, strength, generator)
    return full_rank(torch.where(mask, delta, noise), None, precision(part))


def _dense_replace(
    name: str, part: Sparse, base: Tensor, support: Tensor, strength: float, generator: torch.Generator
) -> Replace:
    delta = exact_delta(name, part)
    noise, deviation = _noise(delta, support, strength, generator)
    for _ in range(MOST_DRAWS):
        new = rounded(base.double() + torch.where(support, delta, noise), base.dtype)
        lost = (new == base) & ~support
        if deviation == 0 or not bool(lost.any()):
            return Replace(new)
        noise[lost] = torch.randn(int(lost.sum()), generator=generator, dtype=torch.float64) * deviation
    raise EditError(
        "VU-E064",
        f"Noise of {deviation:.1e} is too small for {name!r} in {str(base.dtype).removeprefix('torch.')}: "
        f"{int(lost.sum())} of its {base.numel()} numbers would stay as they are and show where the edit is sparse.",
        "Choose a larger strength, or a model in higher precision.",
        where=name,
    )
