"""MAS: stay near the weights of before where the answers depend on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import Tensor

from vu_attribution.candidates import named_candidates
from vu_attribution.gradients import LossGradients, OwnDraws
from vu_baselines.anchored import AnchoredConfig, forget_anchored
from vu_baselines.anchors import Anchors
from vu_baselines.relabelled import DEFAULTS
from vu_core import Batch, Classifier, Denoiser, Edit, ForgetRetain, Model, PlanError, Run, Source, Theta, setting
from vu_core.training import Noised, Timesteps

MAS_SOURCE = Source(
    "Memory aware synapses, Aljundi et al. 2018",
    "https://arxiv.org/abs/1711.09601",
    "paper",
)


@attrs.frozen
class MasAnchorConfig:
    """Settings of `MasAnchor`."""

    strength: float = setting(
        0.005, help="lambda; published: 5 for one task, 0.005 for four, 0.002 on ImageNet-100", ge=0
    )
    online: bool = setting(False, help="stay near the model at the start of the task alone, not near earlier ones too")
    variant: str = setting(
        "paper",
        help="paper: gradients of the squared length of single answers; parity: of the mean square over a batch, as "
        "the released code of GS-LoRA",
        choices=("paper", "parity"),
    )
    batch_size: int = setting(48, help="variant parity: examples per gradient", ge=1)


class MasAnchor:
    """Penalise how far the weights moved, each by how much the answers to retain examples depend on it.

    With ``z_n`` the answer to retain example n of N, the logits of a classifier or the prediction of a denoiser; no
    label is looked at::

        Omega_i = 1/N sum_n |d ||z_n||^2 / d theta_i|
        R       = lambda * sum_j sum_i Omega_ji (theta_i - theta*_ji)^2

    over the anchors ``theta*_j``: the model of the files and, in a sequence, the model after each earlier
    task, each with an Omega measured on the retain examples of this task.

    Args:
        config: see `MasAnchorConfig`.

    Example:
        >>> MasAnchor(MasAnchorConfig()).config.strength
        0.005

    Source:
        Aljundi et al. 2018, arXiv 1711.09601.

    Deviates:
        Released code of GS-LoRA (``variant = "parity"``): ``Omega_i = 1/M sum_b |d mean(z^2) / d theta_i|`` over M
        batches, the mean over examples and logits, in which opposed gradients cancel; where the head has a margin, it
        is taken off the right class; an Omega is measured once, on what its own task retains.
    """

    Config: ClassVar[type[MasAnchorConfig]] = MasAnchorConfig
    source: ClassVar[Source] = MAS_SOURCE
    side: Literal["retain", "forget", "outside"] = "outside"

    def __init__(self, config: MasAnchorConfig) -> None:
        self.config = config
        self._anchors = Anchors(config.strength)

    def prepare(self, model: Model, theta: Theta, data: ForgetRetain, run: Run) -> None:
        """Measure Omega at every anchor.

        Raises:
            DataError: ``VU-D090`` when there are no retain examples. PlanError: ``VU-L122`` for other kinds of models.
        """
        names = [name for name, _ in theta.named_deltas()]
        self._anchors.measure(
            model, theta, run, lambda: self.importance(model, names, data, run), online=self.config.online
        )

    def importance(self, model: Model, names: list[str], data: ForgetRetain, run: Run) -> dict[str, Tensor]:
        """Return Omega of the model as it is now, float32, per weight name."""
        paper = self.config.variant == "paper"
        answer = _answers(model, margin=not paper)

        def square(batch: Batch) -> Tensor:
            z = answer(batch).float()  # (B, ...)
            return z.square().sum() if paper else z.square().mean()

        size = 1 if paper else self.config.batch_size
        gradients = LossGradients(square, named_candidates(model, names), OwnDraws(run, "mas"), size)
        omega = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in gradients.parameters.items()}
        count = max(1, gradients.count(data.retain))  # paper: N
        for gradient in gradients.over(data.retain):
            for name, g in gradient.items():
                omega[name].add_(g.abs(), alpha=1 / count)
        return omega

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


def _answers(model: Model, *, margin: bool) -> Callable[[Batch], Tensor]:
    """Return what the model answers to a batch, ``(B, ...)``, with the margin of its head, if it has one and is asked.

    Raises:
        PlanError: ``VU-L122`` when it is neither a classifier nor a denoiser.
    """
    if isinstance(model, Classifier):
        classifier = model
        with_margin = getattr(model, "margin_logits", None) if margin else None
        if with_margin is not None:
            return lambda batch: with_margin(classifier.images(batch), classifier.labels(batch))
        return lambda batch: classifier.logits(classifier.images(batch))
    if isinstance(model, Denoiser):
        denoiser = model

        def predicted(batch: Batch) -> Tensor:
            drawn = Noised.of(denoiser, batch, Timesteps(0, denoiser.timesteps))
            return denoiser.predict(drawn.noisy, drawn.timesteps, denoiser.embed(batch.captions))

        return predicted
    raise PlanError(
        "VU-L122",
        f"The regularizer 'mas' asks a classifier or a denoiser, but the model {model.facts.name!r} is neither.",
        "Choose the regularizer l2, which asks nothing, or another model.",
        where="regularizer.mas",
    )


class Mas:
    """Teach wrong labels of what is forgotten, and stay near the weights that the retained answers depend on.

    With y' a wrong label and R the penalty of the regularizer `mas`, over all weights but those of the head::

        L = CE(x_f, y') + CE(x_r, y_r) + R                  the middle term with ``replay`` alone

    Args:
        config: see `AnchoredConfig`.

    Example:
        >>> Mas(AnchoredConfig(replay=False)).config.replay
        False

    Source:
        Aljundi et al. 2018, arXiv 1711.09601; with ``replay``: MAS* of GS-LoRA, arXiv 2403.11530.

    Deviates:
        As `L2` in the wrong labels, as `MasAnchor` in the penalty.
    """

    Config: ClassVar[type[AnchoredConfig]] = AnchoredConfig
    source: ClassVar[Source] = MAS_SOURCE
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {**DEFAULTS, "regularizer": {"mas": {}}}

    def __init__(self, config: AnchoredConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train and return what came of it.

        Raises:
            PlanError: ``VU-L095`` when there is no other label; ``VU-L115``, ``VU-L120`` about the head;
                ``VU-L121`` when the run has no regularizer.
        """
        return forget_anchored(model, data, run, self.config, "mas")
