"""The result of an unlearner as a value: what changes in which tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen(eq=False)
class LowRank:
    """``delta = (alpha / rank) * (B A) * M``, reshaped to the tensor.

    Args:
        A: ``(rank, in)`` float; ``in`` is ``C_in * k_h * k_w`` for convolutions.
        B: ``(out, rank)`` float.
        alpha: scale numerator; the strength at which the edit was trained is ``alpha / rank``.
        mask: boolean ``(out, in)`` or ``None``; constant, applied to the product (stored bit-packed).
    """

    A: Tensor
    B: Tensor
    alpha: float
    mask: Tensor | None = None

    @property
    def rank(self) -> int:
        """Number of rows of ``A``."""
        return int(self.A.shape[0])

    def delta(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return the change ``(out, in)`` (or reshaped to ``shape``) in the precision of the factors."""
        product = (self.B @ self.A) * (self.alpha / self.rank)
        if self.mask is not None:
            product = product * self.mask
        return product if shape is None else product.reshape(shape)


@attrs.frozen(eq=False)
class Sparse:
    """Few new values of a tensor: ``new = base; new.flat[indices] = base.flat[indices] + values``.

    Args:
        indices: int64 positions in the flattened tensor, ascending.
        values: the change at these positions, same length; added in float64 and then rounded to the base's precision.
        shape: shape of the tensor.
    """

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]

    def delta(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return the change as a dense tensor."""
        import math

        dense = self.values.new_zeros(math.prod(self.shape))
        dense[self.indices] = self.values
        return dense.reshape(shape or self.shape)


@attrs.frozen(eq=False)
class Replace:
    """A whole new tensor (a parameter or a buffer)."""

    tensor: Tensor


Part = LowRank | Sparse | Replace


@attrs.frozen(eq=False)
class Edit:
    """What an unlearner returns: one part per changed tensor.

    Args:
        parts: change per tensor name; names carry the component, such as ``unet.mid_block...to_q.weight``.
        base: hash of the stored tensors of the model the edit belongs to.
        parents: hashes of edits that lie under this one, in order.
        method: canonical name of the unlearner.
        facts: further JSON values worth keeping with the edit (selected modules, ranks, densities).
        may_be_identity: the method declares that an edit without effect is a valid result (controls).
    """

    parts: Mapping[str, Part]
    base: str = ""
    parents: tuple[str, ...] = ()
    method: str = ""
    facts: Mapping[str, Any] = attrs.field(factory=dict)
    may_be_identity: bool = False

    def __iter__(self) -> Iterator[tuple[str, Part]]:
        return iter(sorted(self.parts.items()))
