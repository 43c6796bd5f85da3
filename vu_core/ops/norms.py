"""Norms and inner products of lists of tensors, without joining them into one vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

CPU_PIECE = 1 << 18
"""Numbers per piece that `gram` widens at a time: 2 MiB in float64 stay in the cache."""
DEVICE_PIECE = 1 << 22
"""The same on other devices, where a piece costs launches: 32 MiB in float64."""


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all numbers of all tensors, as a scalar on their device.

    ``||x|| = sqrt(sum_i ||x_i||^2)``, added up in float64 over the tensors. No copy to the host.

    Args:
        tensors: any shapes, one device; half precision is read as float32.

    Returns:
        Float64 scalar (float32 where the device has no float64); 0 for an empty list.

    Example:
        >>> global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]).item()
        5.0
    """
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled:
        return torch.zeros(())
    norms = torch._foreach_norm([tensor.float() if tensor.dtype.itemsize < 4 else tensor for tensor in filled])
    stacked = torch.stack(norms)
    norm: Tensor = torch.linalg.vector_norm(stacked if stacked.device.type == "mps" else stacked.double())
    return norm


def clip_to_norm(tensors: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale the tensors in place so that their global norm is at most ``max_norm``.

    ``x <- x * min(1, max_norm / ||x||)``.

    Args:
        tensors: changed in place, all by the same factor.
        max_norm: bound, > 0; 0 leaves them alone.

    Returns:
        The norm before clipping, a scalar on the device (no copy to the host).

    Example:
        >>> g = [torch.tensor([30.0, 40.0])]
        >>> clip_to_norm(g, 5.0).item(), g[0].tolist()
        (50.0, [3.0, 4.0])
    """
    norm = global_norm(tensors)
    if max_norm > 0 and tensors:
        # A norm of 0 gives inf, clamped to 1. A norm that is not finite spreads, so that the caller's check sees it.
        factor = (max_norm / norm).clamp(max=1.0)
        torch._foreach_mul_(list(tensors), factor.to(tensors[0].dtype))
    return norm


def gram(retain: Sequence[Tensor | None], forget: Sequence[Tensor | None]) -> Tensor:
    """Return the inner products of two gradients in the order (retain, forget).

    ``K = [[<r, r>, <r, f>], [<r, f>, <f, f>]]`` in float64, added up over pieces of the tensors that are widened one
    after the other. Never builds one long vector, never copies to the host.

    Args:
        retain: gradient per trainable tensor; ``None`` counts as zeros.
        forget: the same, in the same order.

    Returns:
        Float64 ``(2, 2)`` on the device of the gradients (on the CPU where the device has no float64).

    Example:
        >>> gram([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])]).tolist()
        [[25.0, 8.0], [8.0, 4.0]]

    Source:
        The contract of gradient weightings: MUNBa, Nash-MTL, PCGrad and CAGrad depend on these three numbers only.
    """
    present = [gradient for gradient in (*retain, *forget) if gradient is not None]
    if not present:
        return torch.zeros(2, 2, dtype=torch.float64)
    room = _room(present)  # (2, n)
    rr: list[Tensor] = []
    rf: list[Tensor] = []
    ff: list[Tensor] = []
    for r, f in zip(retain, forget, strict=True):
        if r is None and f is None:
            continue
        for x, y in zip(_pieces(r, room[0]), _pieces(f, room[1]), strict=False):  # None is None without end
            if x is not None:
                rr.append(torch.dot(x, x))
            if x is not None and y is not None:
                rf.append(torch.dot(x, y))
            if y is not None:
                ff.append(torch.dot(y, y))
    k11, k12, k22 = (torch.stack(each).sum() if each else room.new_zeros(()) for each in (rr, rf, ff))
    return torch.stack([k11, k12, k12, k22]).reshape(2, 2)


def _room(gradients: Sequence[Tensor]) -> Tensor:
    """Return where a piece of each side is widened: made once, since fresh memory costs more than the products."""
    device = gradients[0].device
    largest = max(gradient.numel() for gradient in gradients)
    n = min(largest, CPU_PIECE if device.type == "cpu" else DEVICE_PIECE)
    return torch.empty(2, n, dtype=torch.float64, device="cpu" if device.type == "mps" else device)


def _pieces(gradient: Tensor | None, room: Tensor) -> Iterator[Tensor | None]:
    """Yield a gradient piece by piece in float64, each in the room of the one before, or ``None`` for ever."""
    if gradient is None:
        yield from repeat(None)
        return
    for piece in torch.split(gradient.detach().flatten(), max(1, len(room))):
        yield room[: len(piece)].copy_(piece)
