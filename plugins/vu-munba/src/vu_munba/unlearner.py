"""MUNBa as a method: another answer for what is forgotten, weighed by Nash bargaining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from vu_baselines.random_label import RandomLabelConfig, relearn
from vu_core import Edit, ForgetRetain, Model, Run, Source, Theta, setting
from vu_core.adapters import check_subset


@attrs.frozen
class MunbaUnlearnerConfig(RandomLabelConfig):
    """Settings of `MunbaUnlearner`: those of `RandomLabel` and the penalty of the paper."""

    subset: str | None = setting(
        "x",
        help="diffusion models; train only x (cross-attention), x-strict, u, self or all of the denoiser; classifiers "
        "have no such parts",
        check=check_subset,
    )
    l1: float = setting(
        0.0,
        help="lambda: weight of ||theta||_1 in the retain loss; nothing without one; 1e-4 in the released code",
        ge=0,
    )


class MunbaUnlearner:
    """Teach another answer for what is forgotten, and bargain between forgetting and keeping.

    The losses are those of `vu_baselines.random_label.RandomLabel`, both descended::

        L_forget = beta * mean((eps(z_t, t, c_f) - sg eps(z_t, t, c'))^2)      classifiers: beta * CE(x_f, y')
        L_retain = mean((eps(z_t, t, c_r) - y)^2) + lambda * ||theta||_1       classifiers: CE(x_r, y_r) + ...

    and the weighting `munba` makes one update of their gradients: the Nash bargaining solution, which both losses agree
    to. ``theta`` is what the run trains: weights, or the factors of a LoRA.

    Args:
        config: see `MunbaUnlearnerConfig`. The values are those for Stable Diffusion: cross-attention, Adam. For
            classifiers the paper has ``epochs = 10``, ``optimizer = "sgd"``, ``lr = 0.01``, ``weight_decay = 5e-4``.

    Example:
        >>> MunbaUnlearner(MunbaUnlearnerConfig(l1=1e-4)).config.subset
        'x'

    Source:
        Wu and Harandi 2024, MUNBa, arXiv 2411.15537.

    Deviates:
        ``l1`` is 0 unless set and does not fade (released code: on for classifiers, falling to 0 over the epochs).
        ``forget_scale`` scales a loss that a Nash weighting makes scale-free, so it does nothing but where the
        weighting falls back or its ``scale`` looks at the norms; a run that sets it is warned (released code: 100 for
        one experiment). The shorter side starts over (there: the rest of an epoch trains on the longer one alone,
        ``training.exhausted = "retain_only"``).
    """

    Config: ClassVar[type[MunbaUnlearnerConfig]] = MunbaUnlearnerConfig
    source: ClassVar[Source] = Source(
        "MUNBa: machine unlearning via Nash bargaining, Wu and Harandi 2024",
        "https://arxiv.org/abs/2411.15537",
        "paper+fixes",
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": {"name": "munba"},
        "parameters": {"name": "full"},
    }

    def __init__(self, config: MunbaUnlearnerConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters on both losses and return what came of it.

        Raises:
            ConfigError: ``VU-C090`` when no timestep can be drawn; ``VU-C113`` when a setting is not for this kind of
                model.
            PlanError: ``VU-L092`` when nothing belongs to the subset; ``VU-L095`` when there is no other label.
            UnlearnError: when a loss or a gradient is not finite.
        """
        return relearn(model, data, run, self.config, retain_penalty=self._penalty if self.config.l1 else None)

    def _penalty(self, theta: Theta) -> Tensor:
        """Return ``lambda * ||theta||_1`` of what is trained."""
        norms = [p.abs().sum(dtype=torch.float32) for p in theta.parameters()]
        return self.config.l1 * torch.stack(norms).sum()
