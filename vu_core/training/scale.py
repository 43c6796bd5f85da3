"""Keeping small gradients alive in fp16."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from vu_core.errors import UnlearnError
from vu_core.ops.norms import global_norm

GROWTH_INTERVAL = 200
"""Steps without overflow after which the scale doubles."""


@attrs.define
class LossScale:
    """Multiply the loss before the backward pass and divide the gradients after it; does nothing unless ``active``.

    The factor halves at an overflow and doubles after many good steps, as that of `torch.amp.GradScaler`; but the
    gradients of each side are divided before their inner products are taken, and the state is two JSON numbers.

    Args:
        active: the network computes in fp16.
        value: factor on the loss; good: steps since the last change.
    """

    active: bool = False
    value: float = 65536.0
    good: int = 0

    def apply(self, loss: Tensor) -> Tensor:
        """Return the loss to go backward from."""
        return loss * self.value if self.active else loss

    def undo(self, gradients: Sequence[Tensor]) -> bool:
        """Divide the gradients in place; return whether they are finite (always true unless ``active``)."""
        if not self.active or not gradients:
            return True
        torch._foreach_mul_(list(gradients), 1.0 / self.value)
        return bool(torch.isfinite(global_norm(gradients)))

    def update(self, finite: bool, step: int) -> None:
        """Adapt the factor to the outcome of a step. Raises: UnlearnError ``VU-U031`` when it has fallen below 1."""
        if not self.active:
            return
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good == GROWTH_INTERVAL:
            self.value, self.good = self.value * 2, 0
        if self.value < 1:
            raise UnlearnError(
                "VU-U031",
                f"The gradients are not finite in fp16 at step {step}, however small the loss is scaled.",
                "Use --set run.precision=bf16 or fp32, or a smaller learning rate.",
            )
