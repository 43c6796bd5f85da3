"""Differentiate now, hand the result to a later backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

HEADROOMS = (65536.0, 4096.0, 256.0, 16.0, 1.0)
"""Factors on the loss in fp16, tried in this order; the first is where the scale of the joint pass starts."""


def settled(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the same scalar with its gradient already computed, so that its activations are freed.

    A later ``backward`` multiplies the stored gradients by what arrives (chain rule): the result is that of one joint
    pass, for any weighting that is linear in the losses or asks for one loss at a time. Under fp16 autocast small
    gradients would vanish before the scale of the loss arrives, so there the loss is scaled here: by the largest factor
    of `HEADROOMS` that overflows nowhere. If none does, the gradients stay as they are, not finite, and the step is
    left out as any other one that overflows.

    Args:
        loss: a scalar.
        parameters: what it will be differentiated with respect to.

    Example:
        >>> w = torch.tensor(3.0, requires_grad=True)
        >>> settled(w * w, [w]).mul(0.5).backward()
        >>> w.grad
        tensor(3.)
    """
    gradients = _scaled_gradients(loss, parameters) if _is_fp16(loss) else _gradients(loss, parameters)
    return _Settled.apply(loss.detach(), tuple(gradients), *parameters)  # type: ignore[no-any-return, no-untyped-call]


def _is_fp16(loss: Tensor) -> bool:
    device = loss.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16


def _gradients(loss: Tensor, parameters: Sequence[Tensor], *, keep: bool = False) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=keep))


def _scaled_gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    for headroom in HEADROOMS[:-1]:
        # Divided by a power of two, which rounds nothing; not in place, since several parameters may share a gradient.
        found = _gradients(loss * headroom, parameters, keep=True)
        gradients = [None if g is None else g / headroom for g in found]
        sound = [g.isfinite().all() for g in gradients if g is not None]
        if not sound or bool(torch.stack(sound).all()):
            return gradients
    return _gradients(loss * HEADROOMS[-1], parameters)


class _Settled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: tuple[Tensor | None, ...], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(None if g is None else g * upstream.to(g.dtype) for g in ctx.gradients))
