"""Saliency: the summed absolute gradient of the loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from vu_attribution.candidates import named_candidates
from vu_attribution.gradients import LossGradients, OwnDraws, own_loss
from vu_core import Examples, ForgetRetain, Model, Run, Source, setting


@attrs.frozen
class SaliencyConfig:
    """Settings of `Saliency`."""

    reduce: str = setting(
        "sum_abs",
        help="sum_abs: sum of |batch gradient|; abs_sum: |sum of them|, as in SalUn; mean: sum_abs / batches",
        choices=("sum_abs", "abs_sum", "mean"),
    )
    contrast: str = setting(
        "none",
        help="retain_ratio: divide by the retain score, which favours what only the forget set uses",
        choices=("none", "retain_ratio"),
    )
    batch_size: int = setting(2, help="examples per gradient; the absolute value is taken after their mean", ge=1)
    weight_by_batch_size: bool = setting(
        False, help="let a last batch that is not full weigh by its size; otherwise it weighs as any other one"
    )
    guidance: float = setting(
        0.0,
        help="w: take the loss of (1 + w) times the answer minus w times that to no caption; classifiers have none",
        ge=0,
    )


class Saliency:
    """Score each parameter by the gradient of the model's own loss on the forget examples.

    In one pass over the examples, with random timesteps and noise of the run's seed::

        S_p = sum over batches of |d/dp l(batch)|

        l = mean((denoiser(z_t, t, c) - y)^2)        diffusion models; y is noise or velocity, as it was trained
        l = mean cross entropy                       classifiers

    The absolute value is taken elementwise, after the mean over a batch: the result depends on ``batch_size``. With
    ``reduce = "abs_sum"`` it is taken of the sum, so that gradients of different sign cancel, as in SalUn. With
    ``guidance`` the denoiser answers ``(1 + w) denoiser(z_t, t, c) - w denoiser(z_t, t, "")``. With ``contrast =
    "retain_ratio"`` the score is ``S_forget / (S_retain + m)``, where ``m`` is the mean of ``S_retain`` over the same
    tensor: without it, elements that nobody uses would score highest. Dropout is off and batch norm keeps its
    statistics.

    Args:
        config: see `SaliencyConfig`.

    Example:
        >>> Saliency(SaliencyConfig(reduce="mean")).config.reduce
        'mean'

    Source:
        Saliency of FADE / SPARE, arXiv 2602.07058; ``abs_sum``: SalUn, Fan et al. 2023, arXiv 2310.12508.

    Deviates:
        The released code of FADE always compares with the noise, also for v-prediction, and draws without a seed.
    """

    Config: ClassVar[type[SaliencyConfig]] = SaliencyConfig
    source: ClassVar[Source] = Source(
        "FADE / SPARE: self-distillation unlearning with sparse LoRA, 2026",
        "https://arxiv.org/abs/2602.07058",
        "paper+fixes",
    )
    version: ClassVar[str] = "3"

    def __init__(self, config: SaliencyConfig) -> None:
        self.config = config

    def attribute(
        self, model: Model, data: ForgetRetain, run: Run, *, candidates: Collection[str] | None = None
    ) -> Mapping[str, Tensor]:
        """Return non-negative float32 scores, one tensor per candidate, in the parameter's shape.

        Raises:
            DataError: ``VU-D090`` when a side that is needed has no examples.
            PlanError: ``VU-L091`` when the model is neither a denoiser nor a classifier.
        """
        loss = own_loss(model, self.config.guidance)
        draws = OwnDraws(run, "saliency")
        gradients = LossGradients(loss, named_candidates(model, candidates), draws, self.config.batch_size)
        forget = self._reduced(gradients, data.forget)
        if self.config.contrast == "none":
            return forget
        return _ratio(forget, self._reduced(gradients, data.retain))

    def _reduced(self, gradients: LossGradients, examples: Examples) -> dict[str, Tensor]:
        scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in gradients.parameters.items()}
        total = 0.0
        for gradient, share in zip(gradients.over(examples), self._shares(len(examples)), strict=True):
            total += share
            for name, g in gradient.items():
                scores[name].add_(g if self.config.reduce == "abs_sum" else g.abs(), alpha=share)
        if self.config.reduce == "abs_sum":
            return {name: s.abs_() for name, s in scores.items()}
        if self.config.reduce == "mean":
            return {name: s.div_(total) for name, s in scores.items()}
        return scores

    def _shares(self, n: int) -> list[float]:
        """Return the weight of each batch of ``n`` examples: 1, but for the last one that is not full if so asked."""
        full, rest = divmod(n, self.config.batch_size)
        last = rest / self.config.batch_size if self.config.weight_by_batch_size else 1.0
        return [1.0] * full + [last] * (rest > 0)


def _ratio(forget: Mapping[str, Tensor], retain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``forget / (retain + mean(retain))``, the mean over each parameter for itself."""
    smallest = torch.finfo(torch.float32).tiny
    return {name: s / (retain[name] + retain[name].mean().clamp_min(smallest)) for name, s in forget.items()}
