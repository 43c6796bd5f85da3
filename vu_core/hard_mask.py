"""Regularizer ``hard-mask``: most weights may not change at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor

from vu_core.contracts.model import Model
from vu_core.contracts.parameters import Theta
from vu_core.data import ForgetRetain
from vu_core.errors import PlanError
from vu_core.ops.masks import pack_mask, top_masks, unpack_mask
from vu_core.run import Run
from vu_core.setting import setting
from vu_core.source import Source


@attrs.frozen
class HardMaskConfig:
    """Settings of ``hard-mask``."""

    density: float = setting(0.5, help="share of the trained weights that may change", gt=0, le=1)


class HardMask:
    """Let only the weights that matter most for the forget set change.

    M = the ``floor(density * P)`` highest scores of the run's attribution among all trained parameters, biases and
    norms included, ties by (name, index). After every step ``theta <- M * theta + (1 - M) * theta_0``, and the moments
    of the optimiser are set to 0 where M is 0. Masking the gradient alone would not do: momentum and weight decay would
    still move masked weights.

    Works with parameters ``full``, whose trained tensors are weights. For low-rank factors use ``masked-lora``, where
    the mask acts on the product.

    Source:
        SalUn, Fan et al. 2023, https://arxiv.org/abs/2310.12508.
    """

    Config: ClassVar[type[HardMaskConfig]] = HardMaskConfig
    source: ClassVar[Source] = Source("SalUn, Fan et al. 2023", "https://arxiv.org/abs/2310.12508", "paper+fixes")
    side: Literal["retain", "forget", "outside"] = "outside"

    def __init__(self, config: HardMaskConfig) -> None:
        self.config = config
        self._masks: dict[str, Tensor] = {}
        self._places: list[tuple[Tensor, Tensor, Tensor]] = []

    def prepare(self, model: Model, theta: Theta, data: ForgetRetain, run: Run) -> None:
        """Choose the weights that may change.

        Raises:
            PlanError: ``VU-L033`` when the run has no attribution, or the parameters are not weights.
        """
        if run.attribution is None:
            raise PlanError(
                "VU-L033",
                "The regularizer 'hard-mask' needs scores per weight, but the run has no attribution.",
                "Set unlearner.attribution.name, or leave the regularizer out.",
                where="regularizer.hard-mask",
            )
        names = [name for name, _ in theta.named_parameters()]
        self._check_weights(theta)
        scores = run.attribute(model, data, candidates=names)
        self._bind(top_masks({name: scores[name] for name in names}, self.config.density), theta)

    def _check_weights(self, theta: Theta) -> None:
        weights = dict(theta.model.network.named_parameters())
        if any(name not in weights or weights[name].shape != p.shape for name, p in theta.named_parameters()):
            raise PlanError(
                "VU-L033",
                "The regularizer 'hard-mask' limits weights, but the trained parameters are not weights of the model.",
                "Use --parameters full; for low-rank factors --parameters masked-lora with a method that gives masks.",
                where="regularizer.hard-mask",
            )

    def _bind(self, masks: Mapping[str, Tensor], theta: Theta) -> None:
        """Pair every trained tensor with its mask and its untouched value."""
        self._masks = dict(masks)
        with theta.base():
            untouched = {name: theta.model.network.get_parameter(name).detach() for name in masks}
        self._places = [(p, masks[name].to(p.device), untouched[name]) for name, p in theta.named_parameters()]

    def penalty(self) -> Tensor | None:
        """Return nothing: the mask acts after the step."""
        return None

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Put masked weights back and clear their moments."""
        with torch.no_grad():
            for parameter, mask, untouched in self._places:
                parameter.copy_(torch.where(mask, parameter, untouched.to(parameter.dtype)))
                for moment in optimizer.state.get(parameter, {}).values():
                    if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                        moment.mul_(mask)

    def state(self) -> Mapping[str, Tensor]:
        """Return the masks as packed bits."""
        return {name: pack_mask(mask) for name, mask in self._masks.items()}

    def load_state(self, state: Mapping[str, Tensor], theta: Theta) -> None:
        """Put the masks back."""
        shapes = {name: parameter.shape for name, parameter in theta.named_parameters()}
        self._bind({name: unpack_mask(packed, shapes[name]) for name, packed in state.items()}, theta)
