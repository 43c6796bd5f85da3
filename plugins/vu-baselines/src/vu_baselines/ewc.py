"""EWC: stay near the weights of before where the labels depend on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import Tensor

from vu_attribution.candidates import named_candidates
from vu_attribution.gradients import LossGradients, OwnDraws, own_loss
from vu_baselines.anchored import AnchoredConfig, forget_anchored
from vu_baselines.anchors import Anchors
from vu_baselines.relabelled import DEFAULTS
from vu_core import Edit, ForgetRetain, Model, Run, Source, Theta, setting

EWC_SOURCE = Source(
    "Overcoming catastrophic forgetting in neural networks, Kirkpatrick et al. 2017",
    "https://arxiv.org/abs/1612.00796",
    "paper",
)


@attrs.frozen
class EwcAnchorConfig:
    """Settings of `EwcAnchor`."""

    strength: float = setting(10.0, help="lambda; published: 10 for one task and for four, 3 on ImageNet-100", ge=0)
    online: bool = setting(False, help="stay near the model at the start of the task alone, not near earlier ones too")
    variant: str = setting(
        "paper",
        help="paper: squared gradients of single examples, lambda / 2; parity: of batch means, lambda, as the released "
        "code of GS-LoRA",
        choices=("paper", "parity"),
    )
    batch_size: int = setting(48, help="variant parity: examples per gradient", ge=1)


class EwcAnchor:
    """Penalise how far the weights moved, each by its Fisher information on the retain examples.

    With ``l_n`` the loss of retain example n of N, the cross entropy of a classifier or the denoising loss::

        F_i = 1/N sum_n (d l_n / d theta_i)^2
        R   = lambda / 2 * sum_j sum_i F_ji (theta_i - theta*_ji)^2

    over the anchors ``theta*_j``: the model of the files and, in a sequence, the model after each earlier task. F is
    measured at each anchor, on the retain examples of this task.

    Args:
        config: see `EwcAnchorConfig`.

    Example:
        >>> EwcAnchor(EwcAnchorConfig()).config.strength
        10.0

    Source:
        Kirkpatrick et al. 2017, arXiv 1612.00796.

    Deviates:
        Released code of GS-LoRA (``variant = "parity"``): ``F_i = B/M sum_b (d mean_b l / d theta_i)^2`` over M batches
        of B, in which opposed gradients cancel, and ``lambda`` in place of ``lambda / 2``; from the second task on it
        reads all examples, here always those of the training; F of an anchor is measured once, on what its own task
        retains.
    """

    Config: ClassVar[type[EwcAnchorConfig]] = EwcAnchorConfig
    source: ClassVar[Source] = EWC_SOURCE
    side: Literal["retain", "forget", "outside"] = "outside"

    def __init__(self, config: EwcAnchorConfig) -> None:
        self.config = config
        self._anchors = Anchors(config.strength / 2 if config.variant == "paper" else config.strength)

    def prepare(self, model: Model, theta: Theta, data: ForgetRetain, run: Run) -> None:
        """Measure F at every anchor.

        Raises:
            DataError: ``VU-D090`` when there are no retain examples.
        """
        names = [name for name, _ in theta.named_deltas()]
        self._anchors.measure(
            model, theta, run, lambda: self.importance(model, names, data, run), online=self.config.online
        )

    def importance(self, model: Model, names: list[str], data: ForgetRetain, run: Run) -> dict[str, Tensor]:
        """Return F of the model as it is now, float32, per weight name."""
        paper = self.config.variant == "paper"
        size = 1 if paper else min(self.config.batch_size, len(data.retain))
        gradients = LossGradients(own_loss(model), named_candidates(model, names), OwnDraws(run, "ewc"), max(1, size))
        fisher = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in gradients.parameters.items()}
        share = size / max(1, gradients.count(data.retain))  # paper: 1 / N
        for gradient in gradients.over(data.retain):
            for name, g in gradient.items():
                fisher[name].addcmul_(g, g, value=share)
        return fisher

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


class Ewc:
    """Teach wrong labels of what is forgotten, and stay near the weights that the retained labels depend on.

    With y' a wrong label and R the penalty of the regularizer `ewc`, over all weights but those of the head::

        L = CE(x_f, y') + CE(x_r, y_r) + R                  the middle term with ``replay`` alone

    Args:
        config: see `AnchoredConfig`.

    Example:
        >>> Ewc(AnchoredConfig(replay=False)).config.replay
        False

    Source:
        Kirkpatrick et al. 2017, arXiv 1612.00796; with ``replay``: EWC* of GS-LoRA, arXiv 2403.11530.

    Deviates:
        As `L2` in the wrong labels, as `EwcAnchor` in the penalty.
    """

    Config: ClassVar[type[AnchoredConfig]] = AnchoredConfig
    source: ClassVar[Source] = EWC_SOURCE
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {**DEFAULTS, "regularizer": {"ewc": {}}}

    def __init__(self, config: AnchoredConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train and return what came of it.

        Raises:
            PlanError: ``VU-L095`` when there is no other label; ``VU-L115``, ``VU-L120`` about the head;
                ``VU-L121`` when the run has no regularizer.
        """
        return forget_anchored(model, data, run, self.config, "ewc")
