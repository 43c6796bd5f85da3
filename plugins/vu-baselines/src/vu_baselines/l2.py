"""L2: stay near the weights of before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import Tensor

from vu_baselines.anchored import AnchoredConfig, forget_anchored
from vu_baselines.anchors import Anchors
from vu_baselines.relabelled import DEFAULTS
from vu_core import Edit, ForgetRetain, Model, Run, Source, Theta, setting

L2_SOURCE = Source("Continual forgetting, Zhao et al. 2024 (baseline L2)", "https://arxiv.org/abs/2403.11530", "paper")


@attrs.frozen
class L2AnchorConfig:
    """Settings of `L2Anchor`."""

    strength: float = setting(
        0.1, help="lambda; published: 0.05 for one task, 0.1 for four, 0.05 on ImageNet-100", ge=0
    )
    online: bool = setting(False, help="stay near the model at the start of the task alone, not near earlier ones too")


class L2Anchor:
    """Penalise how far the weights moved from where they were.

    With the anchors ``theta*_j``, the model of the files and, in a sequence, the model after each earlier task::

        R = lambda * sum_j sum_i (theta_i - theta*_ji)^2

    Works with all kinds of trained parameters: of low-rank factors it is the product that counts.

    Args:
        config: see `L2AnchorConfig`.

    Example:
        >>> L2Anchor(L2AnchorConfig(strength=0.05)).config.strength
        0.05

    Source:
        The baseline L2 of GS-LoRA, Zhao et al. 2024, arXiv 2403.11530.
    """

    Config: ClassVar[type[L2AnchorConfig]] = L2AnchorConfig
    source: ClassVar[Source] = L2_SOURCE
    side: Literal["retain", "forget", "outside"] = "outside"

    def __init__(self, config: L2AnchorConfig) -> None:
        self.config = config
        self._anchors = Anchors(config.strength)

    def prepare(self, model: Model, theta: Theta, data: ForgetRetain, run: Run) -> None:
        """Remember where the weights are."""
        self._anchors.measure(model, theta, run, dict, online=self.config.online)

    def penalty(self) -> Tensor:
        """Return R."""
        return self._anchors.penalty()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Change nothing: the penalty does it all."""

    def state(self) -> Mapping[str, Tensor]:
        """Return the anchors."""
        return self._anchors.state()

    def load_state(self, state: Mapping[str, Tensor], theta: Theta) -> None:
        """Put the anchors back."""
        self._anchors.load_state(state, theta)


class L2:
    """Teach wrong labels of what is forgotten, and stay near the weights of before.

    With y' a wrong label and R the penalty of the regularizer `l2`, over all weights but those of the head::

        L = CE(x_f, y') + CE(x_r, y_r) + R                  the middle term with ``replay`` alone

    Args:
        config: see `AnchoredConfig`.

    Example:
        >>> L2(AnchoredConfig(replay=False)).config.replay
        False

    Source:
        The baseline L2 of GS-LoRA, Zhao et al. 2024, arXiv 2403.11530; with ``replay``: L2* there.

    Deviates:
        A wrong label is one of all others and stays for a pass (released code: one of the forgotten classes, drawn at
        each access, ``relabel = "parity-mod-n"``).
    """

    Config: ClassVar[type[AnchoredConfig]] = AnchoredConfig
    source: ClassVar[Source] = L2_SOURCE
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {**DEFAULTS, "regularizer": {"l2": {}}}

    def __init__(self, config: AnchoredConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train and return what came of it.

        Raises:
            PlanError: ``VU-L095`` when there is no other label; ``VU-L115``, ``VU-L120`` about the head;
                ``VU-L121`` when the run has no regularizer.
        """
        return forget_anchored(model, data, run, self.config, "l2")
