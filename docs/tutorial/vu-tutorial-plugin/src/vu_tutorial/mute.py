"""Mute: the model answers a forgotten caption as if nothing had been said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from vu_core import Batch, Denoiser, Edit, ForgetRetain, Model, Run, Source, setting
from vu_core.training import Training, fit


@attrs.frozen
class MuteConfig:
    """Settings of `Mute`."""

    training: Training = setting(
        factory=lambda: Training(steps=120, batch_size=8, lr=2e-3), help="settings of the training loop"
    )
    keep: float = setting(0.0, help="share of what the caption changes that is still answered", ge=0, lt=1)


class Mute:
    """Train the model to treat a forgotten caption as the empty one.

    With e the untouched denoiser and e' the trained one, z_t a noisy latent, c its caption and () no caption::

        forget:  mean((e'(z_t, t, c) - [e(z_t, t, ()) + keep * (e(z_t, t, c) - e(z_t, t, ()))])^2)
        retain:  mean((e'(z_t, t, c) - e(z_t, t, c))^2)
    """

    Config: ClassVar[type[MuteConfig]] = MuteConfig
    source: ClassVar[Source] = Source("Mute, the method of the vu tutorial", "https://example.org/mute", "own")
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": {"name": "simple", "forget_weight": 0.5},
        "parameters": {"name": "lora", "rank": 8, "alpha": 8.0},
    }

    def __init__(self, config: MuteConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Return the trained change."""
        theta = run.parameterise(model)
        denoiser = cast(Denoiser, model)

        def loss(batch: Batch) -> Tensor:
            z = denoiser.latents(batch)  # (B, C, h, w)
            t = batch.integers("timestep", 0, denoiser.timesteps)  # (B,)
            noisy = denoiser.add_noise(z, batch.normal("noise", z.shape[1:]), t)
            heard = denoiser.embed(batch.captions)  # (B, L, D)
            with theta.base(), torch.no_grad():
                answer = denoiser.predict(noisy, t, heard)
                if batch.side == "forget":
                    silence = denoiser.predict(noisy, t, denoiser.embed([""] * len(batch)))
                    answer = silence + self.config.keep * (answer - silence)
            return functional.mse_loss(denoiser.predict(noisy, t, heard), answer)

        fit(theta, lambda batches: {side: loss(batch) for side, batch in batches.items()}, data, run)
        return theta.edit()
