"""The least squares behind UCE: how a map of text changes so that some texts are read as others."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from vu_concept_editing.scales import Scales
from vu_core import LowRank, Replace, UnlearnError


@attrs.frozen(eq=False)
class Columns:
    """Rows of text embeddings as columns, float64 on the CPU.

    Args:
        concepts: C ``(d, n)``; guides: G ``(d, n)``, column i takes the place of column i of C.
        preserved: P ``(d, m)``; m may be 0.
    """

    concepts: Tensor
    guides: Tensor
    preserved: Tensor


def erasing_rows(columns: Columns, scales: Scales) -> Tensor:
    """Return ``R = C^T M^-1``, ``(n, d)``: the part of the solution that all layers share.

    The new weight of a layer minimises::

        lambda |W' - W|^2  +  e sum_i |W' c_i - W g_i|^2  +  q sum_j |W' p_j - W p_j|^2

    and is  ``W' = W + e W (G - C) R``  with  ``M = lambda I + e C C^T + q P P^T``. With ``B = [sqrt(e) C, sqrt(q) P]``
    there are two ways to ``R``, of which the one with the smaller matrix is taken::

        M = lambda I_d + B B^T        R = C^T M^-1                                       (d, d)
        K = lambda I_nm + B^T B       R = (first n rows of K^-1) B^T / sqrt(e)           (n + m, n + m)

    The second is Woodbury's identity in the form ``M^-1 B = B K^-1``, which divides by nothing small.

    Args:
        columns: C and P; G does not enter here.
        scales: e, q and lambda.

    Raises:
        UnlearnError: ``VU-U105`` when M is singular in float64, or an embedding is not finite.

    Example:
        >>> c, g = torch.tensor([[2.0], [0.0]]).double(), torch.tensor([[0.0], [1.0]]).double()
        >>> erasing_rows(Columns(c, g, torch.zeros(2, 0).double()), Scales(1.0, 1.0, 1.0)).tolist()
        [[0.4, 0.0]]
    """
    c, p = columns.concepts, columns.preserved
    d, n = c.shape
    b = torch.cat([math.sqrt(scales.erase) * c, math.sqrt(scales.preserve) * p], dim=1)  # (d, n + m)
    if b.shape[1] < d:
        k = _shifted(b.T @ b, scales.regularization)  # (n + m, n + m)
        first = torch.eye(b.shape[1], n, dtype=b.dtype)  # (n + m, n)
        return _solve(k, first).T @ b.T / math.sqrt(scales.erase)
    return _solve(_shifted(b @ b.T, scales.regularization), c).T


def _shifted(matrix: Tensor, by: float) -> Tensor:
    matrix.diagonal().add_(by)
    return matrix


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Return ``matrix^-1 right`` of a symmetric positive definite matrix."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    solution = torch.cholesky_solve(right, factor)
    if int(info) or not bool(torch.isfinite(solution).all()):
        raise UnlearnError(
            "VU-U105",
            "The equations of UCE have no solution in double precision: an embedding is not finite, or the "
            "regularization is too small beside the other scales.",
            "Raise unlearner.regularization, or lower unlearner.erase_scale and unlearner.preserve_scale.",
            where="unlearner.regularization",
        )
    return solution


def change_of(weight: Tensor, columns: Columns, erase: float) -> Tensor:
    """Return ``e W (G - C)``, ``(out, n)`` float64: what of ``W' - W`` belongs to one layer.

    Args:
        weight: W ``(out, d)``, any precision.
        columns: C and G.
        erase: e.
    """
    return weight.detach().cpu().double() @ (erase * (columns.guides - columns.concepts))


class Residual:
    """How well several layers read concepts as their guides, and how much of what is preserved has moved.

    With ``L = e W (G - C)`` of a layer, what its new weight misses is a small product, so that the ``(n, n)`` matrices
    ``L^T L`` of all layers can be added up first::

        W c - W g = -L / e        W' c - W g = L (R C - I / e)        W' p - W p = L R P

    Args:
        columns: C, G and P.
        rows: R of `erasing_rows`.
        erase: e.
    """

    def __init__(self, columns: Columns, rows: Tensor, erase: float) -> None:
        n = columns.guides.shape[1]
        share = torch.eye(n, dtype=rows.dtype) / erase
        self.missed = {"erased_before": share, "erased_after": rows @ columns.concepts - share}  # (n, n)
        self.missed["preserved"] = rows @ columns.preserved  # (n, m)
        # A report and no part of the solution: its widest product is made in float32.
        self.guides_and_preserved = torch.cat([columns.guides, columns.preserved], dim=1).float()  # (d, n + m)
        self.gram = torch.zeros(n, n, dtype=rows.dtype)
        self.lengths = torch.zeros(n + columns.preserved.shape[1], dtype=torch.float32)

    def add(self, weight: Tensor, left: Tensor) -> None:
        """Take one layer in: W ``(out, d)``, and L ``(out, n)`` as `change_of` returns it."""
        self.gram += left.T @ left
        self.lengths += (weight.detach().cpu().float() @ self.guides_and_preserved).square().sum(dim=0)

    def shares(self) -> dict[str, float]:
        """Return ``|W c - W g| / |W g|``, the same with W', and ``|W' p - W p| / |W p|``, over all columns."""
        n = len(self.gram)
        guides, preserved = (float(part.double().sum()) for part in (self.lengths[:n], self.lengths[n:]))
        whole = {"erased_before": guides, "erased_after": guides, "preserved": preserved}
        squares = {name: float(((self.gram @ x) * x).sum()) for name, x in self.missed.items()}
        return {
            name: math.sqrt(max(square, 0.0) / whole[name]) if whole[name] else 0.0 for name, square in squares.items()
        }


def as_part(weight: Tensor, left: Tensor, right: Tensor) -> LowRank | Replace:
    """Return ``weight + left right`` as the smaller of a low-rank part and a whole tensor.

    Either way the edited weight is the float64 sum, rounded once to the precision of ``weight``: factors are kept in
    float64 for that, since float32 ones would move some results by one step of the last digit. On a base in half
    precision the change stays beside the weight, where float32 factors are more than it can tell apart.

    Args:
        weight: ``(out, d)``.
        left: ``(out, n)`` float64.
        right: ``(n, d)`` float64.
    """
    kept = torch.float64 if weight.dtype.itemsize >= 4 else torch.float32
    if (left.numel() + right.numel()) * kept.itemsize < weight.numel() * weight.dtype.itemsize:
        return LowRank(A=right.to(kept).clone(), B=left.to(kept).contiguous(), alpha=float(right.shape[0]))
    return Replace((weight.detach().cpu().double() + left @ right).to(weight.dtype))
