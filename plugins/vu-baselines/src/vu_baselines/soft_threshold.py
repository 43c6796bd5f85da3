"""Regularizer ``soft-threshold``: the smallest changes are taken back after every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor

from vu_core import ForgetRetain, Model, PlanError, Run, Source, Theta, setting
from vu_core.training import total_steps


@attrs.frozen
class SoftThresholdConfig:
    """Settings of `SoftThreshold`."""

    ratio: float = setting(
        0.5, help="share of the trained weights that is put back; it falls to 0 over the training", gt=0, le=1
    )


class SoftThreshold:
    """Shrink all changes by the size of the smaller ones, so that these vanish.

    With theta_0 the untouched weights, P of them, s of S steps taken and ``d = theta - theta_0``::

        m     = floor(ratio * (S - s) / S * P)
        tau   = the m-th smallest |d|                          0 where m is 0
        theta <- theta_0 + sign(d) * max(|d| - tau, 0)

    At first a share ``ratio`` of the weights stays where it was; after the last step every weight may have moved. It is
    the proximal step of ``tau * ||theta - theta_0||_1``, a mask that is found while training. It works with parameters
    ``full``, whose trained tensors are weights.

    Args:
        config: see `SoftThresholdConfig`.

    Example:
        >>> SoftThreshold(SoftThresholdConfig(ratio=0.9)).config.ratio
        0.9

    Source:
        SalUn with a soft threshold, Fan et al. 2023, arXiv 2310.12508.

    Deviates:
        theta_0 are the weights before the training (released code: those before the epoch, so that changes of earlier
        epochs are never taken back).
    """

    Config: ClassVar[type[SoftThresholdConfig]] = SoftThresholdConfig
    source: ClassVar[Source] = Source(
        "SalUn with a soft threshold, Fan et al. 2023", "https://arxiv.org/abs/2310.12508", "paper+fixes"
    )
    side: Literal["retain", "forget", "outside"] = "outside"

    def __init__(self, config: SoftThresholdConfig) -> None:
        self.config = config
        self._step = self._total = 0
        self._places: list[tuple[Tensor, Tensor]] = []

    def prepare(self, model: Model, theta: Theta, data: ForgetRetain, run: Run) -> None:
        """Remember the untouched weights and the length of the training.

        Raises:
            PlanError: ``VU-L118`` when the trained parameters are not weights.
        """
        weights = dict(model.network.named_parameters())
        for name, parameter in theta.named_parameters():
            if name not in weights or weights[name].shape != parameter.shape:
                raise PlanError(
                    "VU-L118",
                    "The regularizer 'soft-threshold' puts weights back, but the trained parameters are not weights of "
                    "the model.",
                    "Use --parameters full.",
                    where="regularizer.soft-threshold",
                )
        self._begin(theta, 0, total_steps(data, run))

    def _begin(self, theta: Theta, step: int, total: int) -> None:
        self._step, self._total = step, total
        with theta.base():
            untouched = {name: theta.model.network.get_parameter(name).detach() for name, _ in theta.named_parameters()}
        self._places = [(p, untouched[name]) for name, p in theta.named_parameters()]

    def penalty(self) -> Tensor | None:
        """Return nothing: the threshold acts after the step."""
        return None

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Shrink all changes."""
        self._step += 1
        changes = [p - base.to(p.dtype) for p, base in self._places]
        size = torch.cat([change.abs().flatten() for change in changes])
        m = int(self.config.ratio * (self._total - self._step) / self._total * size.numel())
        if m < 1:
            return
        tau = size.kthvalue(m).values
        for (parameter, base), change in zip(self._places, changes, strict=True):
            parameter.copy_(base.to(parameter.dtype) + change.sign() * (change.abs() - tau).clamp(min=0))

    def state(self) -> Mapping[str, Tensor]:
        """Return how many steps were taken, and of how many."""
        return {"steps": torch.tensor([self._step, self._total])}

    def load_state(self, state: Mapping[str, Tensor], theta: Theta) -> None:
        """Put the count back."""
        self._begin(theta, *(int(number) for number in state["steps"]))
