"""Negation: learn the concept once more, then subtract what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import attrs
from torch import Tensor

from vu_core import Batch, Denoiser, Edit, Examples, ForgetRetain, Model, Run, Source, setting
from vu_core.adapters import negated, scaled
from vu_core.training import Noised, NoisingConfig, Timesteps, denoising_loss, fit, timestep_range


@attrs.frozen
class LoraNegationConfig(NoisingConfig):
    """Settings of `LoraNegation`."""

    strength: float = setting(1.0, help="how many times what was learned is subtracted", gt=0)


class LoraNegation:
    """Fine-tune a diffusion model on the concept, then subtract the change.

    With the forget images and their captions ``c`` alone, the ordinary loss of a diffusion model is minimised::

        L = mean((eps_{W + Delta}(z_t, t, c) - y)^2)        y: what the model predicts, noise or velocity

    ``z_t`` are latents with noise of a random timestep ``t``. The edit is the opposite of what was learned::

        W' = W - strength * Delta

    In the factors of a LoRA all A change their sign and no B; alpha and mask stay (`vu_core.adapters.negated`). The
    negation of the edit is ``W + strength * Delta``, a model that knows the concept better than before.

    There is no retain loss, and therefore no weighting: whatever the training lowers, the subtraction raises again. A
    regularizer is welcome where it means the same for a change and its opposite, as norms and quadratic forms of
    ``Theta.named_deltas`` do; it may look at retain examples when it is prepared. Nothing says where the model should
    go instead of the concept, so the overwrite captions are not used, and other concepts suffer with it: a baseline,
    not a rival of `vu_fade.fade.Fade`.

    Args:
        config: see `LoraNegationConfig`.

    Example:
        >>> LoraNegation(LoraNegationConfig(strength=0.5)).config.strength
        0.5

    Source:
        Negation of task vectors, Ilharco et al. 2022, arXiv 2212.04089, and of LoRA modules, Zhang et al. 2023, arXiv
        2306.14870; for diffusion models the unlearner "Direct" of the released code of FADE, arXiv 2602.07058.

    Deviates:
        The released code can train a retain loss in the adapter that it negates, which then ascends it, and noises the
        retain latents with the noise and timesteps of the forget side; here retain examples take no part. It always
        subtracts the whole change (``strength = 1``).
    """

    Config: ClassVar[type[LoraNegationConfig]] = LoraNegationConfig
    source: ClassVar[Source] = Source(
        "Task arithmetic, Ilharco et al. 2022; unlearner Direct of FADE, 2026",
        "https://arxiv.org/abs/2212.04089",
        "paper+fixes",
    )
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"parameters": {"name": "lora", "rank": 4, "alpha": 4.0}}

    def __init__(self, config: LoraNegationConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters on the forget examples and return the opposite of what came of it.

        Raises:
            ConfigError: ``VU-C090`` when the range of timesteps is empty or leaves the model's.
            UnlearnError: when a loss or a gradient is not finite.
        """
        loss = DenoisingLoss.of(model, self.config)
        theta = run.parameterise(model)
        try:
            fit(theta, loss, attrs.evolve(data, retain=Examples("retain", ())), run, regularizer_data=data)
            learned = theta.edit()
        finally:
            theta.detach()
        edit = negated(scaled(learned, self.config.strength, model.network), model.network)
        tuned = sum(p.numel() for p in theta.parameters())
        return attrs.evolve(edit, facts={**edit.facts, "strength": self.config.strength, "tuned_parameters": tuned})


@attrs.frozen(eq=False)
class DenoisingLoss:
    """The loss that a denoiser was trained with, as `fit` wants it.

    Args:
        model: the denoiser.
        timesteps: which are drawn.
        noise_offset: standard deviation of the noise that all pixels of a channel share.
    """

    model: Denoiser
    timesteps: Timesteps
    noise_offset: float = 0.0

    @classmethod
    def of(cls, model: Model, config: NoisingConfig) -> DenoisingLoss:
        """Make the loss for a model. Raises: ConfigError ``VU-C090``."""
        return cls(cast(Denoiser, model), Timesteps(*timestep_range(model, config)), config.noise_offset)

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return ``mean((prediction - target)^2)`` of every side that was handed over, as float32 scalars."""
        return {side: self._of(batch) for side, batch in batches.items()}

    def _of(self, batch: Batch) -> Tensor:
        drawn = Noised.of(self.model, batch, self.timesteps, self.noise_offset)
        return denoising_loss(self.model, drawn, batch.captions)
