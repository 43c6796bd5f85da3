"""The change that a part makes, as numbers: in float64, on the CPU, against the base where it needs one."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor, nn

from vu_core.adapters.applying import check_fits, tensor_of
from vu_core.edit import Edit, LowRank, Part, Replace, Sparse
from vu_core.errors import EditError


def base_of(name: str, part: Part, network: nn.Module | None) -> Tensor:
    """Return the tensor that a part changes, on the CPU, in its own precision.

    Raises:
        EditError: there is no network (``VU-E061``), or the part does not fit it (``VU-E054``).
    """
    if network is None:
        raise EditError(
            "VU-E061",
            f"The edit replaces the whole tensor {name!r}; what it changes there can only be told from the model.",
            "Hand over the network of the model that the edit was made for.",
            where=name,
        )
    check_fits(network, name, part)
    return tensor_of(network, name).detach().to("cpu")


def exact_delta(name: str, part: Part, network: nn.Module | None = None) -> Tensor:
    """Return the change of one tensor in float64: ``(alpha / rank) (B A) * M``, the values, or ``new - base``.

    Args:
        name: of the tensor.
        part: its change.
        network: holds the base; only `Replace` parts need it.

    Returns:
        ``(out, in)`` for `LowRank`, else the shape of the tensor.

    Raises:
        EditError: as `base_of`.

    Example:
        >>> exact_delta("w", LowRank(torch.ones(1, 2), torch.ones(1, 1), alpha=3.0)).tolist()
        [[3.0, 3.0]]
    """
    match part:
        case LowRank(A=a, B=b, alpha=alpha, mask=mask):
            kept = None if mask is None else mask.to("cpu")
            return LowRank(a.to("cpu").double(), b.to("cpu").double(), alpha, kept).delta()
        case Sparse(indices=indices, values=values, shape=shape):
            return Sparse(indices.to("cpu"), values.to("cpu").double(), shape).delta()
        case Replace(tensor=tensor):
            return tensor.to("cpu").double() - base_of(name, part, network).double()


def rounded(total: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float64 numbers in another precision, whole numbers where it has no others."""
    return total.to(dtype) if dtype.is_floating_point else total.round().to(dtype)


def precision(*parts: Part) -> torch.dtype:
    """Return the precision in which changes of these parts are kept: float32, or float64 where one of them is."""
    found = torch.float32
    for part in parts:
        match part:
            case LowRank(A=a, B=b):
                found = torch.promote_types(found, torch.promote_types(a.dtype, b.dtype))
            case Sparse(values=values):
                found = torch.promote_types(found, values.dtype)
    return found


def check_finite(name: str, *numbers: Tensor) -> None:
    """Object to a change that is infinite or no number. Raises: EditError ``VU-E052``."""
    if not all(bool(torch.isfinite(each).all()) for each in numbers):
        raise EditError(
            "VU-E052",
            f"The change of {name!r} is not finite.",
            "Choose smaller factors or weights, and edits that are finite themselves.",
            where=name,
        )


def unusable(problem: str, remedy: str) -> EditError:
    """Return the error for an argument with which nothing can be computed."""
    return EditError("VU-E060", problem, remedy)


def full_rank(delta: Tensor, mask: Tensor | None, dtype: torch.dtype) -> LowRank:
    """Return a matrix as a low-rank part of the highest rank: the matrix itself times the identity.

    ``B = I, A = delta`` or ``B = delta, A = I``, whichever is smaller. No decomposition could be closer: the only error
    is that of rounding ``delta`` to ``dtype``, and ``rank (out + in)`` numbers are what any other factors need too.

    Args:
        delta: ``(out, in)`` float64.
        mask: boolean ``(out, in)``, kept with the part.
        dtype: precision of the factors.
    """
    rank = min(delta.shape)
    matrix, identity = rounded(delta, dtype), torch.eye(rank, dtype=dtype)
    a, b = (matrix, identity) if delta.shape[0] <= delta.shape[1] else (identity, matrix)
    return LowRank(A=a, B=b, alpha=float(rank), mask=mask)


def matrix_shape(part: Part) -> tuple[int, int]:
    """Return the shape of the changed tensor as a matrix: the first dimension and the product of the others."""
    if isinstance(part, LowRank):
        return int(part.B.shape[0]), int(part.A.shape[1])
    shape = tuple(part.shape) if isinstance(part, Sparse) else tuple(part.tensor.shape)
    return (int(shape[0]) if shape else 1), math.prod(shape[1:])


@attrs.frozen
class DeltaSize:
    """How much one part changes.

    Args:
        zeros: numbers of the tensor that it leaves alone; numel: numbers of the tensor.
        norm: Frobenius norm of the change.
    """

    zeros: int
    numel: int
    norm: float


def delta_size(name: str, part: Part, network: nn.Module | None = None, *, threshold: float = 0.0) -> DeltaSize:
    """Count what a part leaves alone, and measure how much it changes.

    Args:
        name: of the tensor.
        part: its change; mask and scale are part of it.
        network: holds the base; only `Replace` parts need it.
        threshold: a number that changes by no more than this counts as left alone.

    Raises:
        EditError: as `base_of`.

    Example:
        >>> delta_size("w", Sparse(torch.tensor([1]), torch.tensor([3.0]), (2, 2)))
        DeltaSize(zeros=3, numel=4, norm=3.0)
    """
    delta = exact_delta(name, part, network)
    return DeltaSize(int((delta.abs() <= threshold).sum()), delta.numel(), float(torch.linalg.vector_norm(delta)))


def zero_fraction(edit: Edit, network: nn.Module | None = None) -> float:
    """Return the share of numbers that an edit leaves exactly as they are, of all numbers in the tensors it names.

        sum_tensors zeros(delta) / sum_tensors numel(delta)        delta with mask and scale

    Args:
        edit: any edit.
        network: the network it was made for; only `Replace` parts need it.

    Returns:
        A number in [0, 1]; 0 for an edit without parts.

    Raises:
        EditError: as `base_of`.

    Example:
        >>> zero_fraction(Edit({"w": Sparse(torch.tensor([1]), torch.tensor([3.0]), (2, 2))}))
        0.75

    Source:
        ``delta_zero_fraction`` of the sparsity report of FADE / SPARE, https://arxiv.org/abs/2602.07058.
    """
    sizes = [delta_size(name, part, network) for name, part in edit]
    numel = sum(size.numel for size in sizes)
    return sum(size.zeros for size in sizes) / numel if numel else 0.0
