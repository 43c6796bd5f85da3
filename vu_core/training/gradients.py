"""From losses to the gradient of one optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import attrs
import torch
from torch import Tensor

from vu_core.contracts import Regularizer, Theta, Weighting, torch_dtype
from vu_core.data import Batch, Side
from vu_core.errors import UnlearnError
from vu_core.ops.norms import gram
from vu_core.training.order import Portion
from vu_core.training.processes import Processes
from vu_core.training.scale import LossScale

Losses = Callable[[dict[str, Batch]], Mapping[str, Tensor]]
SIDES: tuple[Side, Side] = ("retain", "forget")
"""In the order of the Gram matrix."""
_Pass = tuple[Portion, float, AbstractContextManager[None]]
"""A portion, its share of the step's gradient, and what the model computes in meanwhile."""


@attrs.frozen(eq=False)
class Combined:
    """What came of one gradient computation; nothing is copied to the host yet.

    Args:
        losses: detached scalar per side, mean over the whole batch, without penalties.
        gram: float64 ``(2, 2)`` in the order (retain, forget), for a weighting that is not linear.
        coefficients: of the two sides in the same order.
        left_out: the weighting asks to leave the step out; ``.grad`` is empty.
    """

    losses: Mapping[Side, Tensor]
    gram: Tensor | None = None
    coefficients: tuple[Tensor | float, Tensor | float] = (1.0, 1.0)
    left_out: bool = False


@attrs.define(eq=False)
class Gradients:
    """Compute ``g = a_retain * g_retain + a_forget * g_forget`` into ``.grad`` of the trainable tensors.

    A linear weighting has constant coefficients: one call of the losses with all sides and one backward pass. Any other
    one gets a call and a backward pass per side; the gradient of the first side is put aside (the buffers change hands,
    nothing is copied), and both are combined in place; so does a linear one when ``apart``, so that the Gram matrix is
    known. A weighting that returns ``(0, 0)`` leaves the step out. The mean over portions is taken by their shares, so
    that k portions give what one large batch gives; each side is added up over the processes before the weighting sees
    it.

    Args:
        theta: what is trained; losses: on what.
        weighting: the rule, or ``None`` for the plain sum; regularizers: penalties on their sides.
        weighting_state: JSON values of the rule, kept in checkpoints.
        precision: of the frozen model; half precision computes under autocast.
        processes: who shares the batch; scale: of the loss, for fp16.
        apart: differentiate the sides one by one under every weighting.
    """

    theta: Theta
    losses: Losses
    weighting: Weighting[Any] | None
    regularizers: Sequence[Regularizer[Any]]
    weighting_state: MutableMapping[str, Any]
    precision: str
    processes: Processes
    scale: LossScale
    apart: bool = False
    parameters: list[Tensor] = attrs.field(init=False)
    constant: dict[Side, float] | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.parameters = self.theta.parameters()
        self.constant = constant_coefficients(self.weighting, self.weighting_state)

    def needed(self) -> dict[Side, bool]:
        """Tell which sides are looked at; see `needed_sides`."""
        return needed_sides(None if self.apart else self.constant)

    def compute(
        self, portions: Sequence[Portion], step: int, passes: Sequence[AbstractContextManager[None]]
    ) -> Combined | None:
        """Fill ``.grad``, the mean over the passes; return ``None`` when fp16 overflowed and the step is left out."""
        for parameter in self.parameters:
            parameter.grad = None
        each = [(portion, portion.share / len(passes), within) for portion in portions for within in passes]
        combined = self._jointly(each, step) if self.constant and not self.apart else self._separately(each, step)
        self.scale.update(combined is not None, step)
        return combined

    def _jointly(self, each: Sequence[_Pass], step: int) -> Combined | None:
        weights = self.constant or {}
        totals: dict[Side, Tensor] = {}
        self._penalise({"outside": 1.0, **weights}, shared=True)
        for portion, share, within in each:
            with within:
                values = self._call(portion.batches, step)
                self._backward(sum(share * weights[side] * loss for side, loss in values.items()), step)
            _add(totals, values, share)
        gradients = self._take()
        if not self._settle(gradients):
            return None
        self._put(gradients)
        return Combined(self._settle_losses(totals))

    def _separately(self, each: Sequence[_Pass], step: int) -> Combined | None:
        totals: dict[Side, Tensor] = {}
        gradients: dict[Side, list[Tensor | None]] = {}
        finite = True
        for side in ("forget", "retain"):
            self._penalise({side: 1.0}, shared=True)
            for portion, share, within in each:
                if side in portion.batches:
                    with within:
                        values = self._call({side: portion.batches[side]}, step)
                        self._backward(share * values[side], step)
                    _add(totals, values, share)
            gradients[side] = self._take()
            finite = self._settle(gradients[side]) and finite
        if not finite:
            return None
        losses = self._settle_losses(totals)
        matrix = gram(gradients["retain"], gradients["forget"])
        for side, weight in (self.constant or {}).items():
            if weight == 0:  # no gradient at all, as without `apart`: zeros would let weights decay
                gradients[side] = [None] * len(self.parameters)
        known: dict[str, Tensor] = {side: losses.get(side, matrix.new_zeros(())) for side in SIDES}
        a_retain, a_forget = self._coefficients(matrix, known)
        if isinstance(a_retain, float | int) and isinstance(a_forget, float | int) and a_retain == 0 == a_forget:
            return Combined(losses, matrix, (a_retain, a_forget), left_out=True)
        self._put(combine(gradients["retain"], gradients["forget"], a_retain, a_forget))
        self._penalise({"outside": 1.0}, shared=False)
        return Combined(losses, matrix, (a_retain, a_forget))

    def _coefficients(self, matrix: Tensor, losses: Mapping[str, Tensor]) -> tuple[Tensor | float, Tensor | float]:
        if self.constant is not None:
            return self.constant["retain"], self.constant["forget"]
        if self.weighting is None:
            raise TypeError("the plain sum is linear")
        return self.weighting.coefficients(matrix, losses, self.weighting_state)

    def _call(self, batches: Mapping[str, Batch], step: int) -> dict[Side, Tensor]:
        """Call the losses as the precision asks for, and check what they return."""
        half = self.precision != "fp32"
        device = self.parameters[0].device.type
        # Without the cache: a weight cast inside a teacher pass under no-grad would lose the student's gradient.
        with torch.autocast(device, torch_dtype(self.precision), enabled=half, cache_enabled=False):
            values = self.losses(dict(batches))
        wrong = sorted(set(values) ^ set(batches)) or [
            side for side in values if not isinstance(values[side], Tensor) or values[side].numel() != 1
        ]
        if wrong:
            raise UnlearnError(
                "VU-U032",
                f"At step {step} the losses of the method do not fit its batches: {wrong[0]!r} is missing, surplus or "
                "no scalar.",
                "Report this to the author of the method: one scalar is due per key that was handed over.",
            )
        sides: tuple[Side, ...] = ("forget", "retain")
        return {side: values[side].reshape(()) for side in sides if side in values}

    def _penalise(self, weights: Mapping[Any, float], *, shared: bool) -> None:
        """Add the gradients of the penalties on these sides; ``shared`` ones are added up over the processes later."""
        for regularizer in self.regularizers:
            weight = weights.get(regularizer.side, 0.0)
            penalty = regularizer.penalty() if weight else None
            if penalty is not None:
                loss = penalty * (weight / self.processes.count if shared else weight)
                (self.scale.apply(loss) if shared else loss).backward()  # type: ignore[no-untyped-call]

    def _backward(self, loss: Tensor | int, step: int) -> None:
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise UnlearnError(
                "VU-U032",
                f"At step {step} the losses of the method depend on no trainable tensor.",
                "Train other targets; or report to the author of the method that a loss is computed without gradient.",
            )
        self.scale.apply(loss).backward()  # type: ignore[no-untyped-call]

    def _take(self) -> list[Tensor | None]:
        """Take the gradients off the tensors: the buffers change hands."""
        gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return gradients

    def _put(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def _settle(self, gradients: list[Tensor | None]) -> bool:
        """Add up over the processes and undo the scale, in place; return whether the result is finite in fp16."""
        if self.processes.count > 1:
            gradients[:] = [
                torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, gradients, strict=True)
            ]
        present = [gradient for gradient in gradients if gradient is not None]
        self.processes.add_up(present)
        return self.scale.undo(present)

    def _settle_losses(self, totals: Mapping[Side, Tensor]) -> dict[Side, Tensor]:
        if self.processes.count == 1:
            return dict(totals)
        device = self.parameters[0].device
        every = torch.stack([totals.get(side, torch.zeros((), device=device)).float() for side in SIDES])
        self.processes.add_up([every])
        # All portions of a step have the same sides. A process without a portion knows of none, and tells nobody.
        return {side: every[i] for i, side in enumerate(SIDES) if side in totals or not totals}


def constant_coefficients(
    weighting: Weighting[Any] | None, state: MutableMapping[str, Any]
) -> dict[Side, float] | None:
    """Return the coefficients of a linear weighting (no weighting: the plain sum), ``None`` for any other one."""
    if weighting is None:
        return {"retain": 1.0, "forget": 1.0}
    if not weighting.linear:
        return None
    a_retain, a_forget = weighting.coefficients(None, {}, state)
    return {"retain": float(a_retain), "forget": float(a_forget)}


def needed_sides(constant: Mapping[Side, float] | None) -> dict[Side, bool]:
    """Tell which sides can change the update: a constant coefficient of 0 saves the side."""
    return {side: constant is None or constant[side] != 0.0 for side in SIDES}


def _add(totals: dict[Side, Tensor], values: Mapping[Side, Tensor], share: float) -> None:
    for side, value in values.items():
        part = value.detach() * share
        totals[side] = totals[side] + part if side in totals else part


def combine(
    retain: Sequence[Tensor | None],
    forget: Sequence[Tensor | None],
    a_retain: Tensor | float,
    a_forget: Tensor | float,
) -> list[Tensor | None]:
    """Return ``a_retain * retain + a_forget * forget``, in place in the buffers that were handed over.

    Args:
        retain: gradient per trainable tensor; ``None`` counts as zeros; changed.
        forget: the same; changed.
        a_retain: coefficient, a number or a scalar tensor.
        a_forget: the same.

    Example:
        >>> combine([torch.ones(1)], [torch.ones(1)], 1.0, 0.5)[0].item()
        1.5
    """
    both = [(r, f) for r, f in zip(retain, forget, strict=True) if r is not None and f is not None]
    _scale(retain, a_retain)
    if isinstance(a_forget, Tensor):
        _scale(forget, a_forget)
    else:
        _scale([f for r, f in zip(retain, forget, strict=True) if r is None], a_forget)
    if both:
        # A plain number is multiplied in the same pass over memory; reading a tensor here would wait for the device.
        alpha = 1.0 if isinstance(a_forget, Tensor) else a_forget
        torch._foreach_add_([r for r, _ in both], [f for _, f in both], alpha=alpha)
    return [f if r is None else r for r, f in zip(retain, forget, strict=True)]


def _scale(gradients: Sequence[Tensor | None], factor: Tensor | float) -> None:
    present = [gradient for gradient in gradients if gradient is not None]
    if present:
        plain = factor.to(present[0].device, present[0].dtype) if isinstance(factor, Tensor) else factor
        torch._foreach_mul_(present, plain)
