"""Saliency: the summed absolute gradient of the denoising loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from vu_attribution.candidates import named_candidates
from vu_attribution.gradients import DenoisingGradients, OwnDraws, as_denoiser
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


class Saliency:
    """Score each parameter by the gradient of the denoising loss on the forget examples.

    In one pass over the examples, with random timesteps and noise of the run's seed::

        S_p = sum over batches of |d/dp mean((denoiser(z_t, t, c) - y)^2)|

    ``y`` is what the denoiser was trained to predict, noise or velocity. The absolute value is taken elementwise, after
    the mean over a batch: the result depends on ``batch_size``. With ``contrast = "retain_ratio"`` the score is
    ``S_forget / (S_retain + m)``, where ``m`` is the mean of ``S_retain`` over the same tensor: without it, elements
    that nobody uses would score highest.

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
    version: ClassVar[str] = "2"

    def __init__(self, config: SaliencyConfig) -> None:
        self.config = config

    def attribute(
        self, model: Model, data: ForgetRetain, run: Run, *, candidates: Collection[str] | None = None
    ) -> Mapping[str, Tensor]:
        """Return non-negative float32 scores, one tensor per candidate, in the parameter's shape.

        Raises:
            DataError: ``VU-D090`` when a side that is needed has no examples.
        """
        gradients = DenoisingGradients(
            as_denoiser(model), named_candidates(model, candidates), OwnDraws(run, "saliency"), self.config.batch_size
        )
        forget = self._reduced(gradients, data.forget)
        if self.config.contrast == "none":
            return forget
        return _ratio(forget, self._reduced(gradients, data.retain))

    def _reduced(self, gradients: DenoisingGradients, examples: Examples) -> dict[str, Tensor]:
        scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in gradients.parameters.items()}
        for gradient in gradients.over(examples):
            for name, g in gradient.items():
                scores[name] += g if self.config.reduce == "abs_sum" else g.abs()
        if self.config.reduce == "abs_sum":
            return {name: s.abs_() for name, s in scores.items()}
        if self.config.reduce == "mean":
            return {name: s.div_(gradients.count(examples)) for name, s in scores.items()}
        return scores


def _ratio(forget: Mapping[str, Tensor], retain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``forget / (retain + mean(retain))``, the mean over each parameter for itself."""
    smallest = torch.finfo(torch.float32).tiny
    return {name: s / (retain[name] + retain[name].mean().clamp_min(smallest)) for name, s in forget.items()}
