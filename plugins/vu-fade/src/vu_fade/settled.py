"""Differentiate now, hand the result to a later backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_HEADROOM = 4096.0


def settled(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the same scalar with its gradient already computed, so that its activations are freed.

    A later ``backward`` multiplies the stored gradients by what arrives (chain rule): the result is that of one joint
    pass, for any weighting that is linear in the losses or asks for one loss at a time.

    Args:
        loss: a scalar.
        parameters: what it will be differentiated with respect to.

    Example:
        >>> w = torch.tensor(3.0, requires_grad=True)
        >>> settled(w * w, [w]).mul(0.5).backward()
        >>> w.grad
        tensor(3.)
    """
    # A power of two: changes no bit in float32, and small gradients of a half-precision network do not vanish.
    gradients = torch.autograd.grad(loss * _HEADROOM, parameters, allow_unused=True)
    gradients = tuple(None if g is None else g.div_(_HEADROOM) for g in gradients)
    return _Settled.apply(loss.detach(), gradients, *parameters)  # type: ignore[no-any-return, no-untyped-call]


class _Settled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: tuple[Tensor | None, ...], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(None if g is None else g * upstream.to(g.dtype) for g in ctx.gradients))
