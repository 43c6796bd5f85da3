"""Fisher: the mean squared gradient of single examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from vu_attribution.candidates import named_candidates
from vu_attribution.gradients import LossGradients, OwnDraws, own_loss
from vu_core import ForgetRetain, Model, Run, Source, setting


@attrs.frozen
class FisherConfig:
    """Settings of `Fisher`."""

    side: str = setting("forget", help="examples that the gradients are taken on", choices=("forget", "retain"))


class Fisher:
    """Score each parameter by the diagonal of the empirical Fisher information.

    With ``l_i`` the loss of example i of n, the denoising loss at a random timestep or the cross entropy::

        F_p = 1/n * sum over examples of (d l_i / dp)^2

    Squares are of single examples, never of a batch mean (which would be too small by up to the batch size).

    Args:
        config: see `FisherConfig`.

    Example:
        >>> Fisher(FisherConfig()).config.side
        'forget'

    Source:
        Kirkpatrick et al. 2017, arXiv 1612.00796; a denoiser's loss stands for the negative log-likelihood.
    """

    Config: ClassVar[type[FisherConfig]] = FisherConfig
    source: ClassVar[Source] = Source(
        "Overcoming catastrophic forgetting in neural networks, Kirkpatrick et al. 2017",
        "https://arxiv.org/abs/1612.00796",
        "paper+fixes",
    )
    version: ClassVar[str] = "2"

    def __init__(self, config: FisherConfig) -> None:
        self.config = config

    def attribute(
        self, model: Model, data: ForgetRetain, run: Run, *, candidates: Collection[str] | None = None
    ) -> Mapping[str, Tensor]:
        """Return non-negative float32 scores, one tensor per candidate, in the parameter's shape.

        Raises:
            DataError: ``VU-D090`` when the chosen side has no examples.
            PlanError: ``VU-L091`` when the model is neither a denoiser nor a classifier.
        """
        examples = data.forget if self.config.side == "forget" else data.retain
        gradients = LossGradients(
            own_loss(model), named_candidates(model, candidates), OwnDraws(run, "fisher"), batch_size=1
        )
        scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in gradients.parameters.items()}
        for gradient in gradients.over(examples):
            for name, g in gradient.items():
                scores[name].addcmul_(g, g, value=1 / len(examples))
        return scores
